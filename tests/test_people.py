"The commands from instructions to PPO as a user runs them, on real data; what is rejected leaves nothing behind."
import csv, io, json, random, signal, subprocess, sys, time

import pytest

from lmft.cli import main
from lmft.core import said
from running import lines, metrics, run

@pytest.fixture(scope='module')
def model(data, tmp_path_factory):
    "A small model that has read a few pages of a book, with a chat template"
    out = tmp_path_factory.mktemp('model')/'run'
    run('pretrain', '--data', data/'text/alice.txt', '--max_steps', 12, '--bs', 4, '--vocab_size', 1000, '--out', out)
    return out

@pytest.fixture(scope='module')
def tasks(data):
    names = ['task1146_country_capital', 'task1318_country_national_dish', 'task1554_scitail_classification', 'task190_snli_classification']
    return [data/f'natural_instructions/tasks/{n}.json' for n in names]

@pytest.mark.parametrize('name, args, held', [
    ('sentiment/sst2_dev.jsonl', [], True), ('qa/xquad_en_dev.json', ['--held_out', 0], False),
    ('instruct/self_instruct_seed_dev.jsonl', [], True)])
def test_templates_over_real_sets(model, data, tmp_path, name, args, held):
    "Each row has its origin, the last template is met in the held-out rows alone, and `sft` takes what was made"
    out = tmp_path/'new'
    run('make', '--how', 'templates', '--data', data/name, '--out', out, *args)
    rows,m = lines(out/'instructions.jsonl'),metrics(out)
    assert len(rows)==m['rows']>50 and {'dropped_duplicates', 'dropped_overlap'}<=set(m)
    assert all(r['origin']['way']=='templates' and data.name in r['origin']['source'] for r in rows)
    assert (out/'held_out.jsonl').exists()==held
    if held:
        kept = {r['origin']['template'] for r in lines(out/'held_out.jsonl')}
        assert kept and not kept & {r['origin']['template'] for r in rows}
    if 'qa' in name: return                                                                    # its contexts are long
    run('sft', '--data', out/'instructions.jsonl', '--model', model, '--max_steps', 1, '--bs', 2, '--seq_len', 128, '--out', tmp_path/'sft')
    assert metrics(tmp_path/'sft')['steps']==1

def test_templates_of_ones_own(data, tmp_path):
    t = tmp_path/'t.json'
    t.write_text(json.dumps([dict(instruction='Mood?', input='{text}', output='{label}')]))
    args = ['make', '--how', 'templates', '--data', data/'sentiment/sst2_dev.jsonl', '--held_out', 0, '--templates', t]
    run(*args, '--out', tmp_path/'a')
    assert {r['instruction'] for r in lines(tmp_path/'a/instructions.jsonl')}=={'Mood?'}
    t.write_text(json.dumps([dict(instruction='Mood?', input='{words}', output='{label}')]))
    assert 'words' in run(*args, '--out', tmp_path/'b', code=2) and not (tmp_path/'b').exists()
    t.write_text('{"instruction": ')
    assert 'JSON' in run(*args, '--out', tmp_path/'b', code=2) and not (tmp_path/'b').exists()

def test_guidelines_and_their_breakers(tmp_path):
    "The majority of three annotators is kept, what breaks the guideline is sent back with the reason"
    g,said = tmp_path/'g.json',tmp_path/'said.jsonl'
    g.write_text(json.dumps(dict(name='moods', instruction='Is it good or bad?', format='good|bad', steps=['Read it.'],
                                 exemplars=[dict(instruction='Is it good or bad?', input='Lovely!', output='good')])))
    votes = [('Fine.', 'good', 'a'), ('Fine.', 'good', 'b'), ('Fine.', 'bad', 'c'), ('Awful.', 'bad', 'a'), ('Awful.', 'terrible', 'b')]
    said.write_text('\n'.join(json.dumps(dict(input=x, output=y, annotator=a)) for x,y,a in votes))
    args = ['make', '--how', 'guidelines', '--guideline', g, '--data', said]
    run(*args, '--out', tmp_path/'a')
    rows,back = lines(tmp_path/'a/instructions.jsonl'),lines(tmp_path/'a/sent_back.jsonl')
    assert {(r['input'], r['output']) for r in rows}=={('Fine.', 'good'), ('Awful.', 'bad')}
    assert [r['output'] for r in back]==['terrible'] and metrics(tmp_path/'a')['agreement_percent']==pytest.approx(1/3)
    said.write_text(said.read_text()+'\n{"input": "x", "output": "good"}\n')
    assert 'said.jsonl:6' in run(*args, '--out', tmp_path/'b', code=2) and not (tmp_path/'b').exists()
    run(*args, '--out', tmp_path/'b', '--on_bad', 'skip')
    assert metrics(tmp_path/'b')['bad_records']==1

def test_rows_by_a_model(model, data, tmp_path):
    "The scripted author writes rows of its own; a model that writes nothing usable is rejected with the reason"
    args = ['make', '--how', 'model', '--data', data/'instruct/self_instruct_seed_dev.jsonl', '--rows', 20]
    run(*args, '--model', 'world', '--out', tmp_path/'a')
    rows,m = lines(tmp_path/'a/instructions.jsonl'),metrics(tmp_path/'a')
    assert len(rows)==20==m['rows'] and m['dropped_duplicates']>0 and {r['origin']['author'] for r in rows}=={'world'}
    err = run('make', '--how', 'model', '--data', data/'instruct/self_instruct_seed_dev.jsonl', '--rows', 1, '--model', model, '--max_new_tokens', 8, '--out', tmp_path/'b', code=2)
    assert 'no record was made' in err and not (tmp_path/'b').exists()

def test_evaluate_on_real_tasks(model, tasks, tmp_path):
    run('evaluate', '--tasks', *tasks, '--model', model, '--shots', 1, '--n', 4, '--seq_len', 320, '--max_new_tokens', 4, '--out', tmp_path/'a')
    rows = list(csv.DictReader(open(tmp_path/'a/tasks.csv')))
    assert len(rows)==4 and {'task', 'cluster', 'n', 'metric', 'score', 'se'}==set(rows[0])
    assert metrics(tmp_path/'a')['mean']==pytest.approx(sum(float(r['score']) for r in rows)/4)

def test_compare_on_real_tasks(model, tasks, tmp_path, monkeypatch):
    "The same records are asked as by evaluate; a model is no better than itself; b minus a has the sign of b's lead"
    args = ['compare', '--tasks', *tasks, '--n', 4, '--seq_len', 320, '--max_new_tokens', 4]
    run(*args, '--a', model, '--b', model, '--out', tmp_path/'a')
    m = metrics(tmp_path/'a')
    assert (m['difference'], m['p'], m['verdict'], m['tasks'], m['rows'])==(0, 1, 'no difference shown', 4, 16)
    run('evaluate', *args[1:], '--model', model, '--out', tmp_path/'e')
    assert m['a']==m['b']==pytest.approx(metrics(tmp_path/'e')['mean'])
    assert len([*csv.DictReader(open(tmp_path/'a/compare.csv'))])==4
    import lmft.evals.compare as cmp
    from lmft import all as lm
    real = cmp._graded
    monkeypatch.setattr(cmp, '_graded', lambda who, rows, *o: [float(who=='good')]*len(rows) if who in ('good', 'bad') else real(who, rows, *o))
    there = lm.model_dir(model)
    monkeypatch.setattr(lm, 'model_dir', lambda m: there)
    run(*args, '--a', 'bad', 'bad', '--b', 'good', 'good', '--out', tmp_path/'g')
    assert (metrics(tmp_path/'g')['difference'], metrics(tmp_path/'g')['verdict'])==(1, 'better')
    assert 'equally many' in run(*args, '--a', model, '--b', model, model, '--out', tmp_path/'b', code=2) and not (tmp_path/'b').exists()
    assert 'over' in run(*args, '--a', model, '--b', model, '--over', 'models', '--out', tmp_path/'b', code=2)

def test_loco_on_real_tasks(model, tasks, tmp_path, monkeypatch):
    "Two clusters of two tasks; a run that dies in a fold keeps what was finished, and ends with the same table"
    args = ['loco', '--tasks', *tasks, '--model', model, '--n', 4, '--rows', 16, '--max_steps', 2, '--bs', 2, '--seq_len', 320, '--max_new_tokens', 4]
    run(*args, '--out', tmp_path/'a')
    table = (tmp_path/'a/loco.csv').read_text()
    rows = list(csv.DictReader(io.StringIO(table)))
    assert len(rows)==4 and len({r['cluster'] for r in rows})==2
    assert {'cluster', 'task', 'n', 'metric', 'base', 'few_shot', 'loto', 'loco', 'all', 'base_se', 'all_se'}<=set(rows[0])
    m = metrics(tmp_path/'a')
    assert m['loto_minus_loco_low']<=m['loto_minus_loco']<=m['loto_minus_loco_high'] and 'clusters as units' in (tmp_path/'a/report.html').read_text()
    for c in ('base', 'few_shot', 'loto', 'loco', 'all'): assert m[f'{c}_mean']==pytest.approx(sum(float(r[c]) for r in rows)/4)
    import lmft.evals.folds as ev
    real,n = ev.tune,[]
    def dying(*a, **kw):
        n.append(1)
        if len(n)==3: raise KeyboardInterrupt
        return real(*a, **kw)
    monkeypatch.setattr(ev, 'tune', dying)
    assert main([str(a) for a in [*args, '--out', tmp_path/'b']])==130
    finished = {p.name: p.stat().st_mtime_ns for p in (tmp_path/'b/folds').iterdir()}
    assert len(finished)==4 and not (tmp_path/'b/loco.csv').exists()
    monkeypatch.setattr(ev, 'tune', real)
    assert 'not empty' in run(*args, '--out', tmp_path/'b', code=2)
    assert 'max_steps' in run(*args, '--max_steps', 3, '--resume', '--out', tmp_path/'b', code=2)
    run(*args, '--resume', '--out', tmp_path/'b')
    assert (tmp_path/'b/loco.csv').read_text()==table
    assert {k: v for k,v in ((p.name, p.stat().st_mtime_ns) for p in (tmp_path/'b/folds').iterdir()) if k in finished}==finished

@pytest.mark.parametrize('name', ['preference/hh_harmless_dev.jsonl', 'preference/dpo_en_demo_dev.jsonl', 'preference/llmbar_dev.jsonl', 'preference/pandalm_dev.jsonl'])
def test_preferences_of_people(model, data, tmp_path, name):
    "Reward model and DPO take each public form of pairs"
    args = ['--data', data/name, '--model', model, '--max_steps', 2, '--bs', 2, '--seq_len', 800, '--valid', '0.05']
    run('reward', *args, '--out', tmp_path/'rm')
    run('dpo', *args, '--out', tmp_path/'dpo')
    m = metrics(tmp_path/'dpo')
    assert 0<=metrics(tmp_path/'rm')['pair_accuracy']<=1 and metrics(tmp_path/'rm')['ties']==0
    assert {'pair_accuracy', 'reward_margin', 'chosen_logp_change'}<=set(m) and m['trainable_params']<m['total_params']/5
    assert m['reward_margin_before']==pytest.approx(0, abs=1e-5)                 # the policy begins as its reference

def test_the_whole_loop_of_preferences(model, data, tmp_path):
    "Answers are drawn and ranked, a reward model learns from the ranks, PPO follows it, and the model can be asked"
    prompts = tmp_path/'prompts.jsonl'
    prompts.write_text('\n'.join(json.dumps(dict(prompt=f'What did Alice do in room {i}?')) for i in range(12)))
    run('collect', '--prompts', prompts, '--model', model, '--n', 3, '--max_new_tokens', 6, '--out', tmp_path/'c')
    rows = lines(tmp_path/'c/rankings.jsonl')
    assert rows and all(len(r['responses'])==len(r['ranks'])>1 for r in rows)
    ranked = tmp_path/'ranked.jsonl'
    ranked.write_text('\n'.join(json.dumps(dict(r, ranks=[1+(i>0) for i in range(len(r['ranks']))])) for r in rows))
    run('collect', '--prompts', prompts, '--model', model, '--n', 3, '--max_new_tokens', 6, '--by', ranked, '--out', tmp_path/'d')
    assert lines(tmp_path/'d/rankings.jsonl')==lines(ranked)
    run('reward', '--data', ranked, '--model', model, '--ties', '--max_steps', 2, '--bs', 2, '--valid', '0.2', '--out', tmp_path/'rm')
    assert metrics(tmp_path/'rm')['ties']>0
    run('ppo', '--prompts', prompts, '--model', model, '--reward', tmp_path/'rm', '--max_steps', 2, '--n', 8, '--bs', 4, '--max_new_tokens', 6, '--out', tmp_path/'ppo')
    m = metrics(tmp_path/'ppo')
    assert {'reward_before', 'reward_after', 'kl'}<=set(m) and len(log := lines(tmp_path/'ppo/log.jsonl'))>0
    assert all({'step', 'tokens', 'loss', 'lr', 'tokens_per_s'}<=set(r) for r in log)
    assert isinstance(run('chat', '--model', tmp_path/'ppo', '--prompt', 'Who?', '--max_new_tokens', 3), str)

@pytest.fixture
def asked(model, tmp_path):
    "Forty prompts, and the command line that has answers to them ranked by a person"
    (tmp_path/'p.jsonl').write_text('\n'.join(json.dumps(dict(prompt=f'Who was in room {i}?')) for i in range(40)))
    return ['collect', '--prompts', tmp_path/'p.jsonl', '--model', model, '--n', 2, '--by', 'human', '--max_new_tokens', 5, '--out', tmp_path/'c']

def person(monkeypatch, *lines):
    "A person at the terminal who writes these lines and then closes it"
    monkeypatch.setattr('sys.stdin', io.StringIO(''.join(l+'\n' for l in lines)))

def test_ranking_by_hand(asked, tmp_path, monkeypatch):
    "A person's letters become ranks; quit and --resume go on where it was, to the same file as without a pause"
    person(monkeypatch, 'B >', 'A = B', 'undo', 'B > A', 'skip', 'A > B', 'quit')
    said = run(*asked)
    rows,answers = lines(tmp_path/'c/rankings.jsonl'),lines(tmp_path/'c/answers.jsonl')
    n = len(answers)
    assert [r['ranks'] for r in rows]==[[2, 1], [1, 2]] and [r['prompt'] for r in rows]==[answers[i]['prompt'] for i in (0, 2)]
    assert f'3 of {n}' in said and said.count(f'1 of {n}')==2 and 'is no ranking' in said          # shown again after undo, not after a mistake
    assert metrics(tmp_path/'c')['left']==n-2
    assert 'not empty' in run(*asked, code=2) and len(lines(tmp_path/'c/rankings.jsonl'))==2
    assert 'another run' in run(*asked, '--n', 3, '--resume', code=2)
    person(monkeypatch, *['A = B']*n)
    run(*asked, '--resume')
    ranked = lines(tmp_path/'c/rankings.jsonl')
    assert ranked[:2]==rows and len(ranked)==n and metrics(tmp_path/'c')['left']==0
    assert sorted(r['prompt'] for r in ranked)==sorted(r['prompt'] for r in answers)
    run(*asked, '--resume')                                                                          # nothing is left to ask
    assert lines(tmp_path/'c/rankings.jsonl')==ranked

def test_two_people_rank_the_same_answers(model, asked, tmp_path, monkeypatch):
    "The second is asked all of it again, in the same file; training takes the majority of both, and says so"
    assert 'goes with --by human' in run(*asked[:7], '--by', 'gold', '--rater', 'anna', '--out', tmp_path/'g', code=2)
    person(monkeypatch, 'A > B', 'A = B', 'quit')
    run(*asked, '--rater', 'anna')
    n = len(lines(tmp_path/'c/answers.jsonl'))
    person(monkeypatch, *['B > A']*n)
    assert f'1 of {n}' in run(*asked, '--rater', 'ben', '--resume')
    rows = lines(tmp_path/'c/rankings.jsonl')
    assert [(r['rater'], r['ranks']) for r in rows[:3]]==[('anna', [1, 2]), ('anna', [1, 1]), ('ben', [2, 1])] and len(rows)==n+2
    assert metrics(tmp_path/'c')['left']==0 and metrics(tmp_path/'c')['rankings']==n
    assert 'say who ranks' in run(*asked, '--resume', code=2) and lines(tmp_path/'c/rankings.jsonl')==rows
    args = ['reward', '--data', tmp_path/'c/rankings.jsonl', '--model', model, '--ties', '--max_steps', 1, '--bs', 2, '--valid', '0.2', '--out', tmp_path/'rm']
    run(*args, '--center', .01)
    assert any('the majority of their votes counts' in line for line in said)
    assert metrics(tmp_path/'rm')['ties']==2                      # two that they do not agree on: one contradiction, one tie of Anna's
    assert 'merge_raters' in run(*asked[:7], '--by', tmp_path/'c/rankings.jsonl', '--out', tmp_path/'d', code=2)

def test_a_person_who_is_interrupted(asked, tmp_path):
    "Ctrl-C and kill -9 at random: what was ranked is there, the answers are the same, and the rest is asked once"
    argv,rng,had = [str(a) for a in asked],random.Random(1),0
    code = 'import sys; from lmft.cli import main; sys.exit(main(sys.argv[1:]))'
    for k,stop in enumerate((signal.SIGINT, signal.SIGKILL)):
        p = subprocess.Popen([sys.executable, '-uc', code, *argv, *['--resume'][:k]], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                             preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))       # a background job ignores Ctrl-C
        given = rng.randrange(3, 9)
        for _ in range(given):
            while (piece := p.stdout.readline()) and not piece.startswith('B: '): pass
            p.stdin.write('A > B\n'); p.stdin.flush()
        while (piece := p.stdout.readline()) and not piece.startswith('B: '): pass                 # the last one is on the disk
        p.send_signal(stop)
        err = p.communicate()[1]
        rows = lines(tmp_path/'c/rankings.jsonl')
        assert len(rows)==had+given and (stop==signal.SIGKILL or '--resume goes on' in err and err.count('\n')==1)
        had = len(rows)
    answers = lines(tmp_path/'c/answers.jsonl')
    assert [r['prompt'] for r in rows]==[r['prompt'] for r in answers[:had]] and not (tmp_path/'c/metrics.json').exists()

def test_predictions_for_a_file(model, data, tmp_path):
    "The same file with predictions, also after a kill; figures where there are labels; texts by a model that writes"
    clf,src = tmp_path/'clf',data/'sentiment/sst2_dev.jsonl'
    run('finetune', '--task', 'classify', '--data', src, '--model', model, '--max_steps', 3, '--bs', 4, '--out', clf)
    said = run('predict', '--model', clf, '--data', src, '--out', tmp_path/'a.jsonl')
    rows,given = lines(tmp_path/'a.jsonl'),lines(src)
    assert [{k: r[k] for k in g} for r,g in zip(rows, given, strict=True)]==given and all(.5<=r['probability']<=1 for r in rows)
    right = sum(str(r['prediction'])==str(r['label']) for r in rows)/len(rows)
    assert f'accuracy {right:.4g}' in said and str(tmp_path/'a.jsonl') in said
    assert 'there already' in run('predict', '--model', clf, '--data', src, '--out', tmp_path/'a.jsonl', code=2)
    code = 'import sys; from lmft.cli import main; sys.exit(main(sys.argv[1:]))'
    argv = [str(a) for a in ('predict', '--model', clf, '--data', src, '--out', tmp_path/'b.jsonl')]
    p,part = subprocess.Popen([sys.executable, '-c', code, *argv]),tmp_path/'.b.jsonl.part'
    while p.poll() is None and not (part.exists() and part.read_text().count('\n')>=2): time.sleep(.01)
    p.kill(); p.wait()
    if not (tmp_path/'b.jsonl').exists(): assert 'interrupted' in run(*argv, code=2)
    run(*argv, '--resume')
    assert (tmp_path/'b.jsonl').read_bytes()==(tmp_path/'a.jsonl').read_bytes() and not part.exists()
    table = tmp_path/'t.csv'
    table.write_text('id,review\n1,"Good, really."\n2,Bad.\n')
    run('predict', '--model', clf, '--data', table, '--columns', 'text=review', '--out', tmp_path/'t2.csv')
    found = list(csv.DictReader(open(tmp_path/'t2.csv')))
    assert [(r['id'], r['review']) for r in found]==[('1', 'Good, really.'), ('2', 'Bad.')] and {'prediction', 'probability'}<=set(found[0])
    (tmp_path/'p.jsonl').write_text('{"prompt": "Alice was"}\n{"prompt": "The Queen"}\n')
    run('predict', '--model', model, '--data', tmp_path/'p.jsonl', '--max_new_tokens', 4, '--out', tmp_path/'g.jsonl')
    assert all(isinstance(r['completion'], str) for r in lines(tmp_path/'g.jsonl'))

def test_what_is_refused(model, data, tmp_path):
    "One line that names the file or the option, and nothing left behind"
    new,broken = ['--model', model, '--out', tmp_path/'new'],data/'broken'
    same = broken/'preference_chosen_equals_rejected.jsonl'
    for command in ('reward', 'dpo'): assert same.name in run(command, '--data', same, *new, code=2)
    for command in ('evaluate', 'loco'): assert 'sni_no_definition' in run(command, '--tasks', broken/'sni_no_definition.json', *new, code=2)
    assert 'nowhere' in run('evaluate', '--tasks', tmp_path/'nowhere', *new, code=2)
    assert 'prompt' in run('collect', '--prompts', data/'sentiment/sst2_dev.jsonl', *new, code=2)
    assert 'prompt' in run('dpo', '--data', data/'sentiment/sst2_dev.jsonl', *new, code=2)
    assert '--how' in run('make', '--how', 'magic', '--data', same, '--out', tmp_path/'new', code=2)
    assert '--guideline' in run('make', '--how', 'guidelines', '--data', same, '--out', tmp_path/'new', code=2)
    pairs = data/'preference/llmbar_dev.jsonl'
    assert 'adapter' in run('dpo', '--data', pairs, '--method', 'full', '--reference', 'adapter', *new, code=2)
    assert 'no reward model' in run('ppo', '--prompts', pairs, '--reward', model, '--n', 4, *new, code=2)
    two = [data/f'natural_instructions/tasks/{n}.json' for n in ('task1146_country_capital', 'task190_snli_classification')]
    for bad in (['--method', 'wings'], ['--shots', 70], ['--seq_len', 4000]): run('loco', '--tasks', *two, *bad, *new, code=2)
    assert 'goes with' in run('make', '--how', 'templates', '--rows', 5, '--data', data/'sentiment/sst2_dev.jsonl', '--out', tmp_path/'new', code=2)
    run('reward', '--data', pairs, '--model', model, '--max_steps', 1, '--bs', 2, '--out', tmp_path/'rm')
    assert 'prefix' in run('ppo', '--prompts', pairs, '--reward', tmp_path/'rm', '--method', 'prefix', '--n', 4, '--on_bad', 'skip', *new, code=2)
    assert not (tmp_path/'new').exists()
