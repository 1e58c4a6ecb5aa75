"The tiny world: the same everywhere, fast, without leaks, and readable by others"
import hashlib, json, os, re, subprocess, sys, time
import pytest
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression

from lmft.data.records import read_records
from lmft.world.documents import corpus, minimal_pairs
from lmft.world.facts import World, ambiguous, answer, ask, asked, domains
from lmft.world.judge import Judge, judge_prompts, mixed_rows, pair_rows, ranking_rows, write_world
from lmft.world.tasks import instruction_rows, ner_rows, score, squad_rows, task_rows, tasks

stored = dict(
    facts='8438fd1a3b23', words='4ab848e8fd21', corpus='fccd4afe406d', drift='ba1acc97cdde', domains='61ec708abe68',
    grammar='de101e590f1d', tasks='c0a8f75ea1af', shapes='1e71c8da5315', judge='ee6f9802db04')

def parts(world):
    "Everything that the world makes, in small, by name"
    return dict(
        facts=world.facts, words=world.words, corpus=list(corpus(world, 30_000)),
        drift=list(corpus(world, 5_000, year=2022)),
        domains=[list(corpus(world, 2_000, domain=d)) for d in domains], grammar=minimal_pairs(world, 60),
        tasks=[instruction_rows(world, 5, split) for split in ('train', 'test')],
        shapes=[f(world, 20, split) for f in (ner_rows, squad_rows) for split in ('train', 'test')],
        judge=[f(world, 30) for f in (judge_prompts, ranking_rows, pair_rows, mixed_rows)])

def hashes(seed=0):
    "A short hash of each part"
    texts = {k: json.dumps(v, ensure_ascii=False) for k,v in parts(World(seed)).items()}
    return {k: hashlib.sha256(t.encode()).hexdigest()[:12] for k,t in texts.items()}

@pytest.mark.parametrize('hash_seed', ['1', '2'])
def test_same_in_every_process(hash_seed):
    "Python's own hashes differ between these processes; the world must not, nor between machines and versions"
    here = os.path.dirname(os.path.abspath(__file__))
    code = 'import json; from test_world import hashes; print(json.dumps(hashes()))'
    env = {**os.environ, 'PYTHONHASHSEED': hash_seed, 'PYTHONPATH': os.pathsep.join([here, os.path.dirname(here)])}
    out = subprocess.run([sys.executable, '-c', code], env=env, capture_output=True, text=True, check=True).stdout
    assert json.loads(out.splitlines()[-1])==stored

def test_another_seed_is_another_world():
    other = hashes(1)
    assert not set(other.values()) & set(stored.values())

def test_a_million_words_in_seconds():
    start,n = time.process_time(),0
    for d in corpus(World(0), 1_000_000): n += len(d['text'].split())
    assert n>=1_000_000 and time.process_time()-start<20

@pytest.mark.parametrize('seed', [0, 1])
def test_frequent_facts_are_told_often(seed):
    world,told = World(seed),{}
    for d in corpus(world, 1_200_000):
        for f in d['facts']: told[f] = told.get(f, 0)+1
    counts = [told.get(f'{f.subject} {f.relation} {f.value}', 0) for f in world.now(frequent=True)]
    assert sum(n>=50 for n in counts)>=500 and min(counts)>=50
    rare = [told.get(f'{f.subject} {f.relation} {f.value}', 0) for f in world.now(frequent=False)]
    assert max(rare)<50

def bag_accuracy(train, test, ngrams):
    "Accuracy of logistic regression on TF-IDF"
    vec = TfidfVectorizer(ngram_range=ngrams, token_pattern=r'\w+')
    x,y = vec.fit_transform([r['input'] for r in train]),[r['output'] for r in train]
    fit = LogisticRegression(max_iter=2000, C=10).fit(x, y)
    return fit.score(vec.transform([r['input'] for r in test]), [r['output'] for r in test])

@pytest.mark.parametrize('name', [n for n,t in tasks.items() if t.options])
def test_counting_words_is_not_enough(name):
    for seed in (0, 1):
        train,test = task_rows(World(seed), name, 1500),task_rows(World(seed), name, 500, 'test')
        for ngrams in ((1, 1), (1, 2)): assert bag_accuracy(train, test, ngrams)<=.85

@pytest.mark.parametrize('seed', [1, 2, 3])
def test_gold_answers_get_full_marks_in_every_world(seed):
    world = World(seed)
    judge = Judge(world)
    for r in instruction_rows(world, 20)+instruction_rows(world, 10, 'test', kept=True):
        assert score(r, r['output'])==1
        assert judge.score(r['instruction']+'\n'+r['input'], r['output'], [r['output']])==1
    for f in world.now(): assert judge.score(ask(f), f'{f.value}.')==1

@pytest.fixture(scope='module')
def files(tmp_path_factory):
    "A small world as files: the folder, and the rows of each"
    out = tmp_path_factory.mktemp('world')
    return out, write_world(World(0), out, n_words=40_000, rows=30)

def test_files_are_whole_and_counted(files):
    out,counts = files
    there = sorted(p.relative_to(out).as_posix() for p in out.rglob('*') if p.is_file())
    assert there==sorted(counts)                                # and no temporary file is left
    for name,n in counts.items():
        if name!='natural_instructions/categories.json': assert len(list(read_records(out/name)))==n, name

def test_shapes_round_trip(files):
    out,_ = files
    world,read = World(0),lambda name: list(read_records(out/name))
    def only(rows, fields): return [{k: r[k] for k in fields.split()} for r in rows]
    assert read('ner/train.conll')==ner_rows(world, 120)
    squad = only(squad_rows(world, 120), 'id context question answers')
    assert read('squad/train.json')==[dict(r, source='moves') for r in squad]              # the title of their article
    assert read('preferences/rankings_train.jsonl')==only(ranking_rows(world, 120), 'prompt responses ranks')
    assert read('instructions/train.jsonl')==only(instruction_rows(world, 30), 'instruction input output')
    for name,t in tasks.items():
        rows = read(f'natural_instructions/tasks/{name}.json')
        assert {r['cluster'] for r in rows}=={t.cluster} and {r['task'] for r in rows}=={name}
        assert [r['output'] for r in rows]==[r['output'] for r in task_rows(world, name, 30)]
    assert json.loads((out/'natural_instructions/categories.json').read_text())=={n: t.cluster for n,t in tasks.items()}

def test_datasets_loads_them(files, tmp_path):
    import datasets
    datasets.disable_progress_bars()
    out,counts = files
    for name in counts:
        if name.endswith('.jsonl'):
            assert len(datasets.Dataset.from_json(str(out/name), cache_dir=tmp_path))==counts[name], name
    squad = datasets.Dataset.from_json(str(out/'squad/train.json'), field='data', cache_dir=tmp_path)
    assert len(squad)==counts['squad/train.json']

def test_nothing_kept_is_in_a_training_file(files):
    out,counts = files
    world,test_only = World(0),('test', 'valid', '2022', 'facts/', 'grammar', 'categories', 'domains')
    train = {n: (out/n).read_text() for n in counts if not any(t in n for t in test_only)}
    words = {w for text in train.values() for w in re.findall(r'\w+', text)}
    kept = [w for k in ('unseen', 'unseen_city', 'unseen_company') for w in world.kinds[k] if w not in ambiguous]
    assert len(kept)>50 and not words & {*kept}
    text = '\n'.join(train.values())
    for t in tasks.values(): assert json.dumps(t.kept)[1:-1] not in text, t.kept
    for f in world.now():
        if not asked(f):
            for i in range(4): assert ask(f, i) not in text, ask(f, i)
    for p in minimal_pairs(world, 300): assert p['good'] not in text

@pytest.mark.parametrize('kind', ['instructions', 'preferences', 'ner', 'squad', 'questions'])
def test_train_and_test_files_share_no_row(files, kind):
    out,counts = files
    def rows(split):
        records = [r for n in counts if n.startswith(kind) and split in n for r in read_records(out/n)]
        return {json.dumps({k: v for k,v in r.items() if k!='id'}) for r in records}
    assert rows('train') and rows('test') and not rows('train') & rows('test')

def test_year_decides_the_answer():
    world = World(0)
    for f in world.facts:
        if f.relation=='home' and f.until<2024:
            assert answer(world, ask(f), f.until)==[f.value]!=answer(world, ask(f), f.until+1)
