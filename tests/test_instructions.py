"Likeness against rouge_score, kappas against sklearn and a published table, several writers of one file, real data"
import json, os, random
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest
from rouge_score import rouge_scorer
from sklearn.metrics import cohen_kappa_score

from lmft.data.examples import sft_examples
from lmft.data.tokenizers import train_tokenizer
from lmft.core import BadRecord, LmftError
from lmft.stages.making import (add_row, filter_rows, from_model, from_templates, parse_rows, propose_prompt, rouge_l,
                                usual_templates, world_author)
from lmft.stages.guidelines import agreement, check_against, from_guidelines, read_guideline
from lmft.data.records import read_records
from lmft.world.facts import World
from lmft.world.tasks import task_rows

data = Path(os.environ.get('LMFT_DATA', 'none'))
real = pytest.mark.skipif(not data.is_dir(), reason='LMFT_DATA names no folder with real data')
scorer = rouge_scorer.RougeScorer(['rougeL'])

def likeness(a, b): return scorer.score(a, b)['rougeL'].fmeasure

def test_rouge_of_random_texts():
    rng = random.Random(1)
    for _ in range(500):
        a,b = (' '.join(rng.choices(['a', 'b', "c's", 'D-d', '4.5', 'e,'], k=rng.randint(0, 40))) for _ in range(2))
        assert rouge_l(a, b)==pytest.approx(likeness(a, b))

def plain_filter(rows, bound):
    "As Self-Instruct says it: keep a row whose likeness with all kept ones is below the bound"
    kept = []
    for r in rows:
        text = f"{r['instruction']} {r['input']}".strip()
        if all(likeness(text, k)<bound for k in kept): kept.append(text)
    return kept

@real
@pytest.mark.parametrize('bound', [.3, .5, .7])
def test_filter_agrees_with_rouge_score(bound):
    rows = list(read_records(data/'instruct'/'self_instruct_seed_dev.jsonl'))[:90]
    rows = [dict(r, input='') for r in rows if r['instruction'].isascii()]
    kept,counts = filter_rows(rows, rouge=bound)
    assert [r['instruction'].strip() for r in kept]==plain_filter(rows, bound)
    assert sum(counts.values())==len(rows)-len(kept)

@pytest.mark.parametrize('seed', range(5))
def test_cohen_agrees_with_sklearn(seed):
    rng = random.Random(seed)
    pairs = [(a, a if rng.random()<.6 else rng.choice('abc')) for a in rng.choices('aabc', k=50)]
    found = agreement(pairs)
    assert found['cohen']==pytest.approx(cohen_kappa_score(*zip(*pairs)))
    assert found['percent']==pytest.approx(sum(a==b for a,b in pairs)/50)

def test_agreement_by_hand():
    assert agreement(['ab', 'ba'])==dict(percent=0, fleiss=-1, cohen=-1)
    three = agreement(['aaa', 'aab', 'bbb'])                     # pairs 1, 1/3, 1; five a and four b of nine
    assert three['percent']==pytest.approx(7/9)
    assert three['fleiss']==pytest.approx((7/9-41/81)/(1-41/81)) and 'cohen' not in three
    assert agreement(['aa', 'b', 'bb'])['percent']==1            # one label alone says nothing

guide = dict(name='g', instruction='Which city?', format='[A-Z][a-z]+', limits=dict(output=[1, 1]),
             pitfalls=[dict(say='Helion is a company', pattern='Helion')],
             exemplars=[dict(instruction='Which city?', input='x', output='Selby')])

@pytest.mark.parametrize('output,n', [('Selby', 0), ('selby', 1), ('Helion', 1), ('In Selby', 2), ('', 3)])
def test_each_check(output, n):
    assert len(check_against(guide, dict(instruction='Which city?', input='x', output=output)))==n

def test_guidelines_file(tmp_path):
    path = tmp_path/'g.json'
    path.write_text('{"name": 1')
    with pytest.raises(LmftError, match='cannot be read as JSON'): read_guideline(path)
    path.write_text(json.dumps(dict(guide, exemplars=[dict(instruction='a', input='', output='b c')])))
    with pytest.raises(LmftError, match='exemplar 1 breaks the guideline'): read_guideline(path)
    path.write_text(json.dumps({k: guide[k] for k in ('name', 'exemplars')}))
    with pytest.raises(LmftError, match='has no instruction'): read_guideline(path)
    path.write_text(json.dumps([guide]))
    with pytest.raises(LmftError, match='holds no guideline'): read_guideline(path)

@pytest.mark.parametrize('fault,why', [
    (dict(exemplars='Selby'), 'exemplars is no list'), (dict(exemplars=dict(a=1)), 'exemplars is no list'),
    (dict(format='('), r"format '\(' is no regular"), (dict(format=3), 'format 3 is no regular'),
    (dict(pitfalls=[dict(say='a', pattern='[')]), r"pitfall '\[' is no regular"),
    (dict(pitfalls=['a']), 'pitfalls is no list'), (dict(pitfalls=[dict(pattern='a')]), 'pitfalls is no list'),
    (dict(limits=dict(output=3)), 'limits .* is not like'), (dict(limits=dict(output=[3, 1])), 'limits .* is not like'),
    (dict(limits=dict(answer=[1, 3])), 'limits .* is not like'), (dict(limits=[1, 3]), 'limits .* is not like')])
def test_guideline_faults_without_exemplars(fault, why):
    bare = dict(guide, exemplars=[])
    assert read_guideline(bare)==bare
    with pytest.raises(LmftError, match=why) as e: read_guideline({**bare, **fault})
    assert '\n' not in str(e.value)

@pytest.mark.parametrize('template,why', [
    ('Label it.', "template 2 is 'Label it.'"), (dict(instruction='a'), 'template 2 has instruction; give'),
    (dict(instruction='a', output='b', way='c'), 'template 2 has instruction, output, way; give'),
    (dict(instruction='a', output=1), 'template 2 holds what is no text')])
def test_templates_are_checked_first(template, why):
    good,records = dict(instruction='{text}', output='{label}'),[dict(text='a', label='b')]
    with pytest.raises(LmftError, match=why): from_templates(records, [good, template], 1, on_bad='skip')
    row, = from_templates(records, [good], 0)
    assert (row['instruction'], row['input'], row['output'])==('a', '', 'b')

@pytest.mark.parametrize('a,b,same', [
    ('-1', '1', False), ('7 - 3', '7 + 3', False), ('7 * 3', '7 - 3', False), ('C', 'C++', False), ('0.5', '05', False),
    ('It is Selby.', 'it is  selby', True), ('"Selby"', 'Selby !', True), ('well-known', 'well known', False)])
def test_signs_count_and_punctuation_does_not(a, b, same):
    free = dict(name='f', instruction='Say.', exemplars=[])
    said = [dict(input='x', output=o, annotator=n) for n,o in zip('xy', (a, b))]
    assert from_guidelines(free, said)[2]['percent']==same
    rows = [dict(instruction=f'Take {t}', input='', output='') for t in (a, b)]
    assert filter_rows(rows, rouge=2.)[1]==dict(dropped_duplicates=int(same), dropped_overlap=0)

@pytest.mark.parametrize('pairs,cohen', [(['xy', 'yx'], True), (['xy', 'yz'], False), (['xy', 'z'], True)])
def test_cohen_is_about_two(pairs, cohen):
    said = [dict(input=str(i), output='Selby', annotator=a) for i,pair in enumerate(pairs) for a in pair]
    assert ('cohen' in from_guidelines(guide, said)[2])==cohen

def test_row_after_an_open_line(tmp_path):
    (tmp_path/'a.jsonl').write_text('{"instruction": "a", "input": "", "output": "b"}')
    add_row(tmp_path/'a.jsonl', 'Say hello.', 'Hello!')
    assert [r['output'] for r in read_records(tmp_path/'a.jsonl')]==['b', 'Hello!']

def test_majority_and_what_is_left_out():
    say = lambda x, *outs: [dict(input=x, output=o, annotator=str(i)) for i,o in enumerate(outs)]
    said = say('two of three', 'Selby', 'Ashby', 'Selby')+say('tie', 'Selby', 'Ashby')+say('none', 'no city', '')
    rows,back,agreed = from_guidelines(guide, said)
    assert [(r['input'], r['output'], r['origin']['annotators']) for r in rows]==[('two of three', 'Selby', ['0', '2'])]
    assert sorted(b['input'] for b in back)==['none', 'none', 'tie'] and agreed['percent']==pytest.approx(1/6)
    with pytest.raises(BadRecord, match='record 2.*annotator'): from_guidelines(guide, said[:1]+[dict(input='', output='')])

def _write(args): add_row(args[0], f'Say {args[1]}.', str(args[1]), by='test')

def test_writers_at_once(tmp_path):
    path = tmp_path/'rows.jsonl'
    with ProcessPoolExecutor(4) as pool: list(pool.map(_write, [(path, i) for i in range(40)]))
    rows = [json.loads(l) for l in path.read_text().splitlines()]
    assert sorted(int(r['output']) for r in rows)==list(range(40))
    assert len(list(read_records(path)))==40

def test_every_row_has_its_origin(tmp_path):
    world = World(0)
    records = task_rows(world, 'find_city', 30)
    hand = [add_row(tmp_path/'a.jsonl', 'Say hello.', 'Hello!', by='Ann')]
    filled = from_templates(records, usual_templates(records), 0)
    said = [dict(input=r['input'], output=r['output'], annotator=a) for r in records for a in 'xy']
    guided = from_guidelines(dict(guide, format='.*'), said)[0]
    made = from_model(world_author(world, ['find_city']), filled, 20, rouge=.92, author='scripted')[0]
    tok = train_tokenizer([r['input'] for r in records], 400)
    needs = dict(hand={'by'}, templates={'template', 'held_out', 'source', 'record', 'seed'},
                 guidelines={'guideline', 'annotators', 'share'}, model={'author', 'call', 'seed'})
    for way,rows in dict(hand=hand, templates=filled, guidelines=guided, model=made).items():
        assert rows
        for r in rows:
            assert r['origin']['way']==way and needs[way]<={*r['origin']}
            assert (sft_examples([r], tok)[0]['labels']!=-100).sum()>1

def test_author_keeps_its_rates():
    world,gold = World(0),{}
    for r in task_rows(world, 'find_city', 200, seed=900): gold[r['input']] = r['output']
    say,shown = world_author(world, ['find_city'], wrong=.3, copy=0., near=0.),propose_prompt([])
    said = [r for _ in range(200) for r in parse_rows(say(shown))]
    wrong = sum(gold[r['input']]!=r['output'] for r in said)/len(said)
    assert len(said)==200 and .2<wrong<.4                         # spread of a share of 200: .03

@real
@pytest.mark.parametrize('name', ['sentiment', 'qa', 'natural_instructions/tasks', 'instruct'])
def test_templates_over_real_data(name):
    files = [f for f in sorted((data/name).rglob('*')) if f.suffix in ('.jsonl', '.json', '.csv', '.parquet')]
    done = 0
    for f in files[:4]:
        records = list(read_records(f))[:50]
        try: templates = usual_templates(records)
        except LmftError: continue
        bad,done = [],done+1
        for split in ('train', 'test'):
            rows = from_templates(records, templates, split=split, source=f.name, on_bad='skip', bad=bad)
            assert rows and all(r['output'] and r['origin']['source']==f.name for r in rows)
            assert {r['origin']['held_out'] for r in rows}=={split=='test'}
            assert len(rows)+len(bad)>=len(records)
    assert done
