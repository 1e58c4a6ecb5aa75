"What was left out never reaches training, and a killed run gives the same table"
import json, subprocess, sys
from pathlib import Path
import pandas as pd, pytest
from fastai.callback.core import Callback
from lmft.core import LmftError, set_seed
from lmft.evals import folds as folding
from lmft.data.tokenizers import train_tokenizer
from lmft.evals.folds import check_leaks, columns, fold_rows, forbidden, loco, make_folds
from lmft.evals.evaluation import evaluate, fit_tasks, fitting, grade, standard_error
from lmft.evals.tasks import fingerprints, read_tasks, split_tasks
from lmft.models.loading import new_model
from lmft.world.facts import World
from lmft.world.judge import write_world
from lmft.world.tasks import sni_task, task_rows

names = 'food_review', 'film_review', 'kind_of', 'same_kind', 'find_person', 'find_city', 'find_company'

def make_rows():
    world = World(0)
    return [[r for n in names for r in task_rows(world, n, k, split)] for k,split in ((24, 'train'), (6, 'test'))]

def make_tok(rows):
    return train_tokenizer([f"{r['instruction']} Q: {r['input']} A: {r['output']}" for r in rows[0]], vocab_size=800)

@pytest.fixture(scope='module')
def rows(): return make_rows()

@pytest.fixture(scope='module')
def tok(rows): return make_tok(rows)

def run(rows, tok, **kwargs):
    def fresh():
        set_seed(1)
        return new_model(tok, seq_len=128, hidden_size=32, num_hidden_layers=1, intermediate_size=64)
    return loco(fresh, tok, *rows, **{'steps': 3, 'bs': 8, 'lr': 1e-3, 'max_new_tokens': 4, 'shots': 1, **kwargs})

class Seen(Callback):
    "All rows that training could have seen, as text, and how many batches it took"
    seen = {}
    def __init__(self, fold, tok): self.fold,self.tok = fold,tok
    def after_fit(self):
        texts = [self.tok.decode(e['input_ids']) for row in self.dls.train.dataset for e in row]
        self.seen[self.fold.kind, self.fold.name] = self.fold, texts, self.train_iter

@pytest.fixture(scope='module')
def whole(rows, tok, tmp_path_factory):
    "An uninterrupted run: its folder, its table, and what was trained on"
    out,Seen.seen = tmp_path_factory.mktemp('whole'),{}
    return out, run(rows, tok, out=out, cbs=lambda fold: Seen(fold, tok)), dict(Seen.seen)

def finished(out): return {p.name: json.loads(p.read_text()) for p in sorted((out/'folds').iterdir())}

def test_columns(whole):
    out,table,_ = whole
    assert [*table] == ['cluster', 'task', 'n', 'metric', *columns, *(f'{c}_se' for c in columns)]
    assert sorted(table.task)==sorted(names) and not table.isna().any().any() and (table.n==6).all()
    pd.testing.assert_frame_equal(pd.read_csv(out/'loco.csv'), table, check_dtype=False)

def test_nothing_left_out_was_trained_on(whole, rows, tok):
    "By the kept hashes, by hashes made anew here, and by the very text of the batches"
    train,test = rows
    for saved in finished(whole[0]).values():
        if saved.get('kind')!='loco': continue
        trained = {*saved['trained']}
        for r in train+test:
            if r['task'] in saved['scored']: assert not fingerprints(r)&trained
    def squeezed(text): return ''.join(text.lower().split())
    for fold,texts,_ in whole[2].values():
        said = squeezed('\n'.join(texts))
        for r in test+(train if fold.kind!='all' else []):
            if r['task'] in fold.scored: assert squeezed(f"Q: {r['input']}\nA:") not in said
            if r['task'] in fold.scored and fold.kind=='loco': assert squeezed(r['instruction']) not in said
        asked = [r for r in train if r['task'] in fold.tasks]        # the same look finds what is there
        assert any(squeezed(f"Q: {r['input']}\nA:") in said for r in asked)

def test_a_planted_leak_is_refused(rows, tok, monkeypatch):
    train,test = rows
    stray = next(r for r in train if r['task']=='kind_of')
    stray = dict(stray, task='find_city', cluster='extraction', instruction='Which city is named?')
    for f,rs in zip(fs:=make_folds(train+[stray]), fold_rows(fs, train+[stray], test)):
        assert f.kind=='all' or 'kind_of' not in f.scored or stray['input'] not in [r['input'] for r in rs]
        check_leaks(f, rs, forbidden(f, train+[stray], test))
    honest = folding.fold_rows
    monkeypatch.setattr(folding, 'fold_rows', lambda *args: [rs[:-1]+[test[0]] for rs in honest(*args)])
    with pytest.raises(LmftError, match='would train on the instance of a row that it leaves out'): run(rows, tok)

def test_folds_are_equal(whole):
    folds = [f for f in finished(whole[0]).values() if 'kind' in f]
    assert [sum(f['kind']==k for f in folds) for k in ('loco', 'loto', 'all')] == [3, 3, 2]  # largest cluster: 3 tasks
    assert len({len(f['tasks']) for f in folds})==1 and len({f['rows'] for f in folds})==1
    assert {len(texts) for _,texts,_ in whole[2].values()}=={f['rows'] for f in folds}
    assert {n for *_,n in whole[2].values()}=={3}

class Boom(Callback):
    def after_fit(self): raise KeyboardInterrupt

def test_an_interrupted_run_goes_on(whole, rows, tok, tmp_path):
    started = []
    def cbs(fold):
        started.append(fold.name)
        return [Boom()] if len(started)==4 else []
    with pytest.raises(KeyboardInterrupt): run(rows, tok, out=tmp_path, cbs=cbs)
    kept = {p.name: p.stat().st_mtime_ns for p in (tmp_path/'folds').iterdir()}
    assert len(kept)==5 and not (tmp_path/'loco.csv').exists()                          # two before tuning, three folds
    run(rows, tok, out=tmp_path, cbs=cbs)
    assert len(started)==4+5                                                            # five of eight were left to do
    assert all((tmp_path/'folds'/n).stat().st_mtime_ns==t for n,t in kept.items())
    assert (tmp_path/'loco.csv').read_bytes()==(whole[0]/'loco.csv').read_bytes()
    assert finished(tmp_path)==finished(whole[0])

def test_killed_for_good(whole, tmp_path):
    "A process that dies at once in the middle of a fold, and another that goes on"
    code = '''import os, sys
sys.path.insert(0, sys.argv[2])
from test_evaluation import *
class Die(Callback):
    def after_batch(self): os._exit(9)
rows = make_rows()
def cbs(fold): return [Die()] if sys.argv[3]=='die' and fold.kind=='loto' else []
run(rows, make_tok(rows), out=Path(sys.argv[1]), cbs=cbs)'''
    def process(how):
        return subprocess.run([sys.executable, '-c', code, str(tmp_path), str(Path(__file__).parent), how]).returncode
    assert process('die')==9
    assert len(finished(tmp_path))==5
    assert process('live')==0
    assert (tmp_path/'loco.csv').read_bytes()==(whole[0]/'loco.csv').read_bytes()

def test_other_settings_are_refused(whole, rows, tok):
    train,test = rows
    for other in (dict(rows=rows, steps=4), dict(rows=[train, test[1:]]), dict(rows=[train[::-1], test])):
        with pytest.raises(LmftError, match='another model, data or settings'): run(tok=tok, out=whole[0], **other)

def test_in_conversations_with_an_adapter(rows, tok):
    table = run(rows, tok, chat=True, method='lora', steps=1)
    assert len(table)==len(names) and not table.isna().any().any()

def test_tasks_without_rows_to_ask_are_left_out(rows, tok):
    train,test = rows
    table = run([train, [r for r in test if r['task']!='kind_of']], tok, steps=1)
    assert {*table.task}=={*names}-{'kind_of'} and not table.isna().any().any()

def test_world_files_are_the_rows(tmp_path):
    world = World(0)
    write_world(world, tmp_path, n_words=2000, rows=20)
    read = read_tasks(tmp_path/'natural_instructions')
    assert len({r['task'] for r in read})==42 and len({r['cluster'] for r in read})==14
    mine = task_rows(world, 'find_city', 20)
    assert [r['input'] for r in read if r['task']=='find_city']==[r['input'] for r in mine]
    assert {len(f.tasks) for f in make_folds(read)}=={42-14}                            # a fold by task leaves out 14

def test_real_tasks(data):
    "65 tasks of Super-NaturalInstructions: clusters as the published ones, relatives by source kept out"
    folder = data/'natural_instructions'
    read = read_tasks(folder)
    given = json.loads((folder/'categories.json').read_text())
    assert {r['task']: r['cluster'] for r in read}==given
    train,test = split_tasks(read, 40, 10)
    assert {r['task'] for r in train}=={r['task'] for r in test}==set(given)
    folds = make_folds(train)
    assert len({len(f.tasks) for f in folds})==1
    inference = next(f for f in folds if f.name=='Textual Entailment')
    assert 'task190_snli_classification' in inference.scored
    assert not [t for t in inference.tasks if 'snli' in t or 'scitail' in t]  # other clusters, same sources
    for f,rs in zip(folds, fold_rows(folds, train, test)): check_leaks(f, rs, forbidden(f, train, test))

def test_records_that_are_no_tasks(tmp_path):
    (tmp_path/'a.json').write_text(json.dumps([dict(instruction='Add.', input='1 1', output='2')]))
    with pytest.raises(LmftError, match='a.json: holds no task'): read_tasks(tmp_path)
    row = dict(instruction='Add.', input='1 1', output='2')
    lines = '\n'.join(json.dumps(dict(row, task='b', cluster='c')) for _ in range(3))
    csv = 'instruction,input,output\nAdd.,1 1,2\n'
    for name,text in {'b.jsonl': lines, 'b.json': lines, 'i.jsonl': json.dumps(row), 'c.csv': csv, 'd.txt': 'x'}.items():
        (tmp_path/name).write_text(text)
        with pytest.raises(LmftError, match=f'{name}: holds no task'): read_tasks(tmp_path/name)

@pytest.mark.parametrize('said,gold,right', [('-5', '5', 0), ('C', 'C++', 0), ('1/2', '1-2', 0), ('5%', '5', 0),
                                             ('Paris.', 'paris', 1), ("'Yes!'", 'yes', 1), ('-5.', '-5', 1)])
def test_exact(said, gold, right): assert grade(dict(output=gold), said)==right

def test_a_task_that_does_not_fit(rows, tok):
    train,test = rows
    long = [dict(r, input=r['input']+' and on'*99) if r['task']=='kind_of' else r for r in test]
    with pytest.raises(LmftError, match='task kind_of has no record that fits into 128 tokens'): fitting(long, tok, 128)
    with pytest.raises(LmftError, match='task kind_of'): run([train, long], tok)

def longer(rows, *tasks): return [dict(r, input=r['input']+' and on'*99) if r['task'] in tasks else r for r in rows]

def test_all_tasks_that_do_not_fit_are_named(rows, tok):
    train,test = rows
    for sides in ([train, longer(test, 'kind_of', 'find_city')], [longer(train, 'find_city'), longer(test, 'kind_of')]):
        with pytest.raises(LmftError, match='tasks find_city, kind_of have no record that fits into 128 tokens.*skip'): fit_tasks(sides, tok, 128)
        with pytest.raises(LmftError, match='find_city, kind_of'): run(sides, tok)
    with pytest.raises(LmftError, match='have no record'): fit_tasks([longer(test, *names)], tok, 128, on_bad='skip')   # none is left

def test_tasks_that_do_not_fit_are_left_out_and_counted(rows, tok):
    train,test = rows
    bad = []
    with pytest.warns(UserWarning, match='records are left out'):
        table = run([longer(train, 'find_city'), longer(test, 'kind_of')], tok, steps=1, on_bad='skip', bad=bad)
    assert {*table.task}=={*names}-{'kind_of', 'find_city'} and [str(b).split()[1] for b in bad]==['find_city', 'kind_of']
    with pytest.warns(UserWarning, match='12 of 42 records are left out'):
        assert len(fitting(longer(test, 'kind_of', 'find_city'), tok, 128, on_bad='skip'))==30

def test_prompts_that_fill_the_model(rows, tok):
    model,bad = new_model(tok, seq_len=128, hidden_size=32, num_hidden_layers=1, intermediate_size=64),[]
    asked = [r for r in rows[1] if not r.get('options')]
    open_tasks = sorted({r['task'] for r in asked})[:2]
    far = longer(asked, *open_tasks)
    with pytest.raises(LmftError, match='tasks .*, .*leaves no room') as e: evaluate(model, tok, far, max_new_tokens=2)
    assert all(t in str(e.value) for t in open_tasks)
    table = evaluate(model, tok, far, max_new_tokens=2, on_bad='skip', bad=bad)
    assert {*table.task}=={r['task'] for r in asked}-{*open_tasks} and len(bad)==2

def test_tasks_with_too_few_instances():
    few = [dict(task=t, cluster=t, instruction='i', input=str(i), output='o') for t,n in (('a', 2), ('b', 3), ('c', 8)) for i in range(n)]
    with pytest.raises(LmftError, match="task 'a' has 2 .*, task 'b' has 3 different instances; at least 4"): split_tasks(few)
    bad = []
    assert {r['task'] for side in split_tasks(few, on_bad='skip', bad=bad) for r in side}=={'c'} and len(bad)==2

@pytest.mark.parametrize('values', [[1, 1, 0], [.2, .9], [0, 0, 0]])
def test_standard_error_by_hand(values):
    m = sum(values)/len(values)
    assert standard_error(values)==pytest.approx((sum((v-m)**2 for v in values)/(len(values)-1)/len(values))**.5)

def test_answers_get_the_room_there_is(rows, tok):
    model = new_model(tok, seq_len=128, hidden_size=32, num_hidden_layers=1, intermediate_size=64)
    asked = [r for r in rows[1] if not r.get('options')][:12]
    table = evaluate(model, tok, asked, max_new_tokens=500)
    pd.testing.assert_frame_equal(table, evaluate(model, tok, asked, max_new_tokens=500, bs=1))
    near = dict(asked[0], input='near '*30)
    assert len(evaluate(model, tok, [near, *asked], max_new_tokens=60))==len(table)
    with pytest.raises(LmftError, match='leaves no room'): evaluate(model, tok, [dict(near, input='far '*200)])

@pytest.mark.parametrize('content,why', [('{}', 'is one object'), ('[1', 'JSON'), ('{"Instances": []}', 'Categories')])
def test_broken_files(tmp_path, content, why):
    (tmp_path/'task.json').write_text(content)
    with pytest.raises(LmftError, match=why): read_tasks(tmp_path)

def test_broken_categories(tmp_path):
    (tmp_path/'a.json').write_text(json.dumps(sni_task(World(0), 'calculate', 8)))
    for content,why in (('[1', 'cannot be read as JSON'), ('["a"]', 'must be one object')):
        (tmp_path/'categories.json').write_text(content)
        with pytest.raises(LmftError, match=why): read_tasks(tmp_path)

def test_a_fold_that_is_lost_is_not_kept(rows, tok, tmp_path):
    "A rate that spoils the weights ends the run; what was finished before stays"
    with pytest.raises(LmftError, match='not a finite number'): run(rows, tok, out=tmp_path, lr=float('inf'))
    assert sorted(finished(tmp_path))==['base-1.json', 'few_shot-1.json']
