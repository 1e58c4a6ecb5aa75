"What a cell of nbs/reference/records.ipynb cannot hold: the real files, the broken files, memory on larger files, random damage"
import gzip, json, os, random, tracemalloc
from pathlib import Path

import pytest

from lmft.core import BadRecord, LmftError
from lmft.data.files import fingerprint
from lmft.data.shapes import normalise, shape_of
from lmft.data.records import read_records, read_splits
from lmft.data.splits import split_records

data = Path(os.environ.get('LMFT_DATA', 'missing'))
needs_data = pytest.mark.skipif('LMFT_DATA' not in os.environ, reason='LMFT_DATA, the folder of real test data, is not set')
entries = json.loads((data/'MANIFEST.json').read_text(encoding='utf-8'))['entries'] if 'LMFT_DATA' in os.environ else []

# The manifest counts tasks, lines or names where a record is an instance, a chunk, or a sentence
counts = {'instruct/self_instruct_seed_dev.jsonl': None, 'instruct/self_instruct_user_oriented_dev.jsonl': None,
          'ner/sec_FIN5.conll': 1169-5}      # five -DOCSTART- lines
folders = {'abc': 'plain', 'chat': 'messages', 'natural_instructions': 'task', 'ner': 'tagged', 'preference': 'pairs',
           'qa': 'squad', 'sentiment': 'labelled', 'text': 'plain', 'instruct': 'alpaca'}

def real_files():
    "Entries of the manifest that hold records"
    lists = 'natural_instructions/splits', 'natural_instructions/categories'
    return [e for e in entries if e['kind']!='broken' and not e['file'].startswith(lists)]

def instances(path):
    "How many records the lines of a self-instruct file hold"
    return sum(len(json.loads(line)['instances']) for line in path.read_text(encoding='utf-8').splitlines())

@needs_data
@pytest.mark.parametrize('e', real_files(), ids=lambda e: e['file'])
def test_real_file(e):
    path = data/e['file']
    records = list(read_records(path))
    kind = folders[e['file'].split('/')[0]]
    assert {shape_of(r) for r in records}=={kind}
    assert all(normalise(r, kind)==[r] for r in records if not r.get('continues'))
    if e['file'].startswith('text/'):
        assert ''.join(r['text'] for r in records)==path.read_text(encoding='utf-8')
        assert all(len(r['text']) <= 16_384 for r in records)
    else: assert len(records)==(counts.get(e['file'], e['rows']) or instances(path))

@needs_data
def test_real_folders():
    names = 'abc chat instruct natural_instructions/tasks ner preference qa sentiment text'
    everything = [data/f for f in names.split()]
    assert sum(1 for _ in read_records(everything)) > 20_000
    assert fingerprint(everything)==fingerprint(everything[::-1])
    with pytest.raises(LmftError, match='categories.json: is one object .* not records'):
        list(read_records(data/'natural_instructions'))

@needs_data
def test_hh_oddities():
    records = list(read_records(data/'preference/hh_harmless_dev.jsonl'))
    for r in records:
        assert [m['role'] for m in r['prompt']]==(['user', 'assistant']*len(r['prompt']))[:len(r['prompt'])]
        assert r['prompt'][-1]['role']=='user' and all(m['content'] for m in r['prompt'])
    assert sum(not r['chosen'] for r in records)==3      # three annotators preferred silence
    assert list(read_records(data/'preference/hh_harmless_dev_first200.jsonl.gz'))==records[:200]

broken = {  # file -> (what the error says, lines or record numbers that are bad, good records with on_bad='skip')
    'alpaca_null_output.json': (":12, record 3: field 'output': is null", [3, 5], 3),
    'chat_unknown_role.jsonl': (":2: field 'messages[1].role': is \"robot\"", [2], 2),
    'label_out_of_range.jsonl': (":3: field 'label': is -1", [3, 5, 7, 9, 11], 7),
    'missing_fields.jsonl': (":2: field 'output': is missing", [2, 4, 6], 3),
    'preference_chosen_equals_rejected.jsonl': (":2: field 'rejected': is the same answer as chosen", [2, 5], 4),
    'ragged_columns.conll': (':4: is one column (separator TAB)', [4], 3),
    'squad_bad_offsets.json': (', record 1: field \'answers\': of question "5725b81b271a42140099d097"', [1, 16], 18),
    'truncated.jsonl': (':6: is not JSON: Unterminated string', [6], 5),
    'wrong_utf8.jsonl': (':3: is not UTF-8 at byte offset 447 of the line (0xe9)', [3], 4),
    'sni_no_definition.json': (": field 'Definition': is missing", [None], 0),
    'empty.jsonl': (': is empty; it holds no record', [None], 0)}
valid = {'bom_crlf.jsonl': 5, 'huge_line.jsonl': 1, 'huge_line.txt': 123}

@needs_data
def test_every_broken_file_is_tested():
    assert {Path(e['file']).name for e in entries if e['kind']=='broken'}=={*broken, *valid}

@needs_data
@pytest.mark.parametrize('name', broken)
def test_broken_file(name):
    path,(why,places,good),bad = data/'broken'/name,broken[name],[]
    with pytest.raises(BadRecord) as e: list(read_records(path))
    assert str(e.value).startswith(f'{path}{why}') and '\n' not in str(e.value)
    if good: assert len(list(read_records(path, on_bad='skip', bad=bad)))==good
    else:
        with pytest.raises(LmftError, match='no record is left'): list(read_records(path, on_bad='skip', bad=bad))
    assert [b.record or b.line for b in bad]==places
    assert all(b.path==path for b in bad)

@needs_data
@pytest.mark.parametrize('name', valid)
def test_odd_but_valid_file(name):
    records = list(read_records(data/'broken'/name))
    assert len(records)==valid[name]
    assert not any(c in v for r in records for v in r.values() if isinstance(v, str) for c in '\ufeff\r')
    if name.startswith('huge'): assert sum(len(r['text']) for r in records)==2_000_000

# ---------- memory

def peak_mb(path):
    "Peak of Python's memory while the records of `path` pass by, and how many they are"
    tracemalloc.start()
    n = sum(1 for _ in read_records(path))
    mb = tracemalloc.get_traced_memory()[1]/1e6
    tracemalloc.stop()
    return n, mb

def rows_of(n): return ({'text': 'the cat sat on the mat and '*40+str(i), 'label': i%3} for i in range(n))

def test_memory_does_not_grow_with_the_file(tmp_path):
    with gzip.open(tmp_path/'a.jsonl.gz', 'wt', compresslevel=1) as f:
        f.writelines(json.dumps(r)+'\n' for r in rows_of(20_000))
    with open(tmp_path/'a.json', 'w') as f:
        f.write('[')
        f.writelines(('' if i==0 else ',')+json.dumps(r) for i,r in enumerate(rows_of(20_000)))   # an array in one line
        f.write(']')
    with open(tmp_path/'a.txt', 'w') as f: f.writelines(r['text'] for r in rows_of(20_000))       # a text in one line
    for name in ('a.jsonl.gz', 'a.json', 'a.txt'):
        n,mb = peak_mb(tmp_path/name)
        assert n==20_000 or name=='a.txt'
        assert mb < 2, f'{name}: {mb:.1f} MB'

def test_parquet_memory(tmp_path):
    import pyarrow as pa, pyarrow.parquet as pq
    with pq.ParquetWriter(tmp_path/'a.parquet', pa.schema({'text': pa.string(), 'label': pa.int64()})) as w:
        for start in range(0, 20_000, 2_000):
            rows = [{'text': f'{i} '*300, 'label': i%3} for i in range(start, start+2_000)]
            w.write_table(pa.Table.from_pylist(rows, schema=w.schema))
    del rows
    before = pa.total_allocated_bytes()
    worst = n = 0
    for _ in read_records(tmp_path/'a.parquet'):
        n += 1
        if n%100==0: worst = max(worst, pa.total_allocated_bytes()-before)
    assert n==20_000
    assert worst < 12e6, f'{worst/1e6:.1f} MB held of about 30'

def test_small_records_after_a_huge_one_are_fast(tmp_path):
    rows = [{'text': 'x'*8_000_000}]+[{'text': 'y'}]*50_000
    (tmp_path/'a.json').write_text(json.dumps(rows))
    assert sum(1 for _ in read_records(tmp_path/'a.json'))==50_001      # quadratic in the window, this would take minutes

# ---------- damage

samples = {
    'a.jsonl': b'{"instruction": "Add.", "input": "1 1", "output": "2"}\n{"instruction": "Sub.", "output": "\xc3\xa9"}\n',
    'b.json': b'[\n {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]},\n'
              b' {"conversations": []}\n]',
    'c.json': b'{"data": [{"paragraphs": [{"context": "a cat", "qas": [{"id": "1", "question": "q", '
              b'"answers": [{"text": "cat", "answer_start": 2}]}]}]}]}',
    'd.json': b'{"Definition": ["Add."], "Categories": ["c"], "Instances": [{"id": "1", "input": "1 1", "output": ["2"]}]}',
    'e.csv': b'text,label\n"a, b",1\n"say ""c""",0\n', 'f.conll': b'Rose\tB-PER\nsat\tO\n\nRex\tO\n',
    'g.abc': b'X:1\nK:C\nCDE|\n\nX:2\nK:D\nDEF|\n', 'i.txt': b'The cat\r\n\r\nsat.',
    'h.jsonl': b'{"chosen": "\\n\\nHuman: a\\n\\nAssistant: b", "rejected": "\\n\\nHuman: a\\n\\nAssistant: c"}\n'}
damage = [b'', b'null', b'"', b'{', b'[', b'}', b']', b',', b'\n', b'\r', b'\t', b'\xff', b'\xe2\x80', b'\xef\xbb\xbf',
          b'\\ud800', b'NaN', b'1e999', b'-1', b'\0', b'\\', b'['*50]

@pytest.mark.parametrize('on_bad', ['error', 'skip'])
def test_damage_is_never_a_traceback(tmp_path, on_bad):
    "Whatever happens to a file, it gives records that can be written again, or one line that names the file"
    rng = random.Random(0)
    for _ in range(1_500):
        name = rng.choice(list(samples))
        b = bytearray(samples[name])
        for _ in range(rng.randint(1, 3)):
            at = rng.randrange(len(b)+1)
            b[at:at+rng.choice([0, 1, 4])] = rng.choice(damage)
        path,bad = tmp_path/name,[]
        path.write_bytes(b)
        try: json.dumps(list(read_records(path, on_bad, bad)), ensure_ascii=False).encode()
        except LmftError as e: bad.append(e)
        for e in bad: assert str(path) in str(e) and '\n' not in str(e) and len(str(e).encode()) < 1_000

turn,talk = {'role': 'user', 'content': 'a'}, [{'from': 'human', 'value': 'a'}]
texts = [  # rows whose text fields are each set to null
    ({'text': 'a'}, 'text'), ({'text': 'a', 'label': 'b'}, 'text label'), ({'prompt': 'a'}, 'prompt'),
    ({'instruction': 'a', 'output': 'b'}, 'instruction output'), ({'instruction': 'a', 'response': 'b'}, 'instruction response'),
    ({'prompt': 'a', 'completion': 'b'}, 'prompt completion'), ({'messages': [turn]}, 'messages'),
    ({'conversations': talk}, 'conversations'), ({'chosen': 'Human: a', 'rejected': 'b'}, 'chosen'),
    ({'prompt': 'a', 'chosen': 'b', 'rejected': 'c'}, 'prompt chosen rejected'),
    ({'conversations': talk, 'chosen': 'b', 'rejected': 'c'}, 'conversations chosen rejected'),
    ({'prompt': 'a', 'responses': ['b', 'c'], 'ranks': [1, 2]}, 'prompt responses'),
    ({'tokens': ['a'], 'tags': ['O']}, 'tokens tags'),
    ({'id': '1', 'context': 'a', 'question': 'b', 'answers': []}, 'id context question answers'),
    ({'instruction': 'a', 'instances': [{'output': 'b'}]}, 'instruction instances'),
    ({'task': 'a', 'cluster': 'b', 'instruction': 'c', 'input': '', 'references': ['d'], 'id': 'e'},
     'task cluster instruction input references id')]

@pytest.mark.parametrize('row,fields', texts, ids=lambda x: x if isinstance(x, str) else '')
def test_null_is_no_text(row, fields):
    for field in fields.split():
        with pytest.raises(BadRecord) as e: normalise({**row, field: None})
        assert e.value.field and 'None' not in str(e.value)

# ---------- files as people have them

def put(path, *rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(''.join((r if isinstance(r, str) else json.dumps(r))+'\n' for r in rows), encoding='utf-8')
    return path

def heard(capsys, path, **kwargs):
    "The records of a file, and what the reader said"
    return list(read_records(path, **kwargs)), capsys.readouterr().err

def chat(*turns, **more): return dict(messages=[dict(role=r, content=c) for r,c in turns], **more)

two = ('user', 'a?'),('assistant', 'b')
meaning = {  # row → (record, names that are said)
    'system': (dict(system='Shout.', instruction='a?', output='b'), chat(('system', 'Shout.'), *two), ''),
    'history': (dict(instruction='a?', input='', output='b', history=[['c?', 'd']]), chat(('user', 'c?'), ('assistant', 'd'), *two), ''),
    'sharegpt': (dict(system='Shout.', conversations=[{'from': 'human', 'value': 'a?'}, {'from': 'gpt', 'value': 'b'}]),
                 chat(('system', 'Shout.'), *two), ''),
    'pairs': (dict(system='Shout.', question='a?', chosen='b', rejected='c'),
              dict(prompt=chat(('system', 'Shout.'), two[0])['messages'], chosen='b', rejected='c'), ''),
    'ultra': (chat(*two, prompt='a?', prompt_id='7'), chat(*two), 'prompt'),
    'textmsg': (chat(*two, text='x'), chat(*two), 'text'),
    'weights': (dict(text='a', weight=0, score=.5, id=3), dict(text='a'), 'weight, score'),
    'nan': ('{"text": "a", "url": [NaN]}', dict(text='a'), ''),
    'pair': (dict(text='a', text_pair='b', label=0), dict(text='a', text_pair='b', label=0), ''),
    'mnli': (dict(idx=1, premise='a', hypothesis='b', label='c'), dict(text='a', text_pair='b', label='c'), ''),
    'glue': (dict(sentence1='a', sentence2='b', label=0), dict(text='a', text_pair='b', label=0), ''),
    'qa': (dict(question='a?', answer='b'), dict(instruction='a?', input='', output='b'), ''),
    'query': (dict(query='a?', response='b'), dict(instruction='a?', input='', output='b'), ''),
    'io': (dict(input='a?', output='b'), dict(instruction='a?', input='', output='b'), ''),
    'sentiment': (dict(review='a', sentiment=' pos'), dict(text='a', label='pos'), ''),
    'sentence': (dict(sentence='a', label=True), dict(text='a', label='True'), ''),
    'trl': (dict(prompt=chat(two[0])['messages'], completion=chat(two[1])['messages']), chat(*two), ''),
    'kto': (dict(prompt='a?', completion='b', label=True), dict(prompt='a?', completion='b'), ''),
    'source': (dict(text='a', source='web'), dict(text='a', source='web'), '')}

@pytest.mark.parametrize('name', meaning)
def test_nothing_is_lost_without_its_name(name, tmp_path, capsys):
    row,record,said = meaning[name]
    path = put(tmp_path/f'{name}.jsonl', row, row)
    records,err = heard(capsys, path)
    assert records==[record]*2
    lines = [l for l in err.splitlines() if 'not used' in l]
    assert lines==([f'lmft: {path}: these fields are not used: {said}'] if said else [])
    for field in [f for f in row if f in ('system', 'history', 'weight')] if isinstance(row, dict) else []:     # nothing in it, nothing said
        path = put(tmp_path/f'{name}_nothing.jsonl', {**row, field: None})
        assert f' {field}' not in heard(capsys, path)[1]

def test_messages_that_are_not_used_whole_are_named(tmp_path, capsys):
    path = put(tmp_path/'a.jsonl', dict(conversations=[{'from': 'human', 'value': 'a?'}, {'from': 'gpt', 'value': 'b', 'mood': 'good'}]))
    assert 'conversations[].mood' in heard(capsys, path)[1]

def test_disliked_answers_are_not_trained(tmp_path):
    path,bad = put(tmp_path/'kto.jsonl', *[dict(prompt='a?', completion=f'b{i}', label=i%2==1) for i in range(6)]),[]
    with pytest.raises(BadRecord, match="kto.jsonl:1: field 'label': is false: people disliked"): list(read_records(path))
    assert [r['completion'] for r in read_records(path, 'skip', bad)]==['b1', 'b3', 'b5'] and len(bad)==3

tables = {'index': ',text,label\n0,a,1\n1,b,3\n', 'semicolon': 'text;label\na;1\nb;3\n', 'trailing': 'text,label,\na,1,\nb,3,\n',
          'quoted': '"text";"label"\r\n"a";1\r\n"b";3\r\n', 'bar': 'text|label\na|1\nb|3\n', 'bom': '\ufefftext,label\na,1\nb,3\n'}

@pytest.mark.parametrize('encoding', ['utf-8', 'utf-16', 'utf-16-le', 'utf-16-be'])
@pytest.mark.parametrize('suffix', ['csv', 'csv.gz', 'tsv'])
def test_dialects(tmp_path, suffix, encoding):
    for name,text in {**tables, 'tab': 'text\tlabel\na\t1\nb\t3\n'}.items():
        path = tmp_path/f'{name}.{suffix}'
        with (gzip.open if suffix.endswith('gz') else open)(path, 'wb') as f: f.write(text.encode(encoding))
        assert list(read_records(path))==[dict(text='a', label=1), dict(text='b', label=3)], name

@pytest.mark.parametrize('text', ['I liked the food there,1\nNo,0\n', 'good,1\nbad,0\n', 'good,good\nbad,bad\n', 'nice place,pos\nbad,neg\n'])
def test_csv_without_header_is_called_that(tmp_path, text):
    with pytest.raises(BadRecord, match='(put a|has no) header') as e: list(read_records(put(tmp_path/'a.csv', text)))
    assert str(tmp_path/'a.csv') in str(e.value)

labels = {'1 5 3': [1, 5, 3], '2019 2020': [2019, 2020], '01 10': ['01', '10'], '2.5 3': [2.5, 3.], 'True False': ['True', 'False'],
          'pos neg': ['pos', 'neg']}

@pytest.mark.parametrize('values', labels)
def test_labels_of_tables(tmp_path, values):
    path = put(tmp_path/'a.csv', 'review,stars', *[f'text {v},{v}' for v in values.split()])
    assert [r['label'] for r in read_records(path)]==labels[values]
    assert [r['label'] for r in read_records(path, columns='text=review,label=stars')]==labels[values]

def test_blanks_around_labels(tmp_path, capsys):
    records,err = heard(capsys, put(tmp_path/'a.csv', 'text,label', 'a,pos', 'b,pos ', 'c, pos'))
    assert {r['label'] for r in records}=={'pos'} and 'blanks around labels are left out ("pos " is "pos")' in err

def test_columns(tmp_path):
    path = put(tmp_path/'a.jsonl', dict(opinion='a', mood='pos', rude=1, sad=0, text='x'))
    assert list(read_records(path, columns='text=opinion,label=mood'))==[dict(text='a', label='pos')]
    assert list(read_records(path, columns=dict(text='opinion', label='rude+sad')))==[dict(text='a', label=['rude'])]
    with pytest.raises(BadRecord, match="a.jsonl:1: has no column 'opinoin'; did you mean opinion?"):
        list(read_records(path, columns='text=opinoin'))

blocks = {'plain': 'Rose PER\nTyler PER\nsat O\n', 'comment': '# sent_id = 0\nRose B-PER\nTyler I-PER\nsat O\n', 'aligned': 'Rose    B-PER\nTyler   I-PER\nsat     O\n',
          'trail': 'Rose\tB-PER\t\nTyler\tI-PER\t\nsat\tO\t\n', 'nbsp': 'Rose\tB-PER\nTyler\tI-PER\nsat\tO\n\xa0\tO\n', 'four': 'Rose NN - B-PER\nTyler NN - I-PER\nsat VB - O\n'}

@pytest.mark.parametrize('name', blocks)
def test_conll_of_others(tmp_path, name):
    path = put(tmp_path/'a.conll', blocks[name], blocks[name])
    assert list(read_records(path))==[dict(tokens=['Rose', 'Tyler', 'sat'], tags=['B-PER', 'I-PER', 'O'])]*2

def test_bilou_and_names_of_classes(tmp_path):
    import datasets
    path = put(tmp_path/'a.conll', 'Rose B-PER', 'Tyler L-PER', 'sat O', 'Bath U-LOC')
    assert list(read_records(path))[0]['tags']==['B-PER', 'E-PER', 'O', 'S-LOC']
    names = datasets.Features(dict(tokens=datasets.List(datasets.Value('string')), ner_tags=datasets.List(datasets.ClassLabel(names=['O', 'B-PER']))))
    data = datasets.Dataset.from_list([dict(tokens=['Rose', 'sat'], ner_tags=[1, 0])], features=names)
    data.save_to_disk(tmp_path/'ner')
    data.to_parquet(tmp_path/'ner.parquet')
    for p in ('ner', 'ner.parquet'): assert list(read_records(tmp_path/p))==[dict(tokens=['Rose', 'sat'], tags=['B-PER', 'O'])]

# ---------- splits

def test_the_test_split_is_never_trained_on(tmp_path, capsys):
    secret = [chat(('user', f'q{i}'), ('assistant', f'SECRET {i}')) for i in range(20)]
    for train,test in [('train.jsonl', 'test.jsonl'), ('data/train-00000-of-00001.jsonl', 'data/test-00000-of-00001.jsonl'),
                       ('train/a.jsonl', 'test/a.jsonl'), ('my_train.jsonl', 'my_eval.jsonl'), ('talks.jsonl', 'test.jsonl')]:
        folder = tmp_path/train.replace('/', '_')
        put(folder/train, *[chat(*two)]*9)
        put(folder/test, *secret)
        assert 'SECRET' not in json.dumps(list(read_records(folder))), train
        train,valid = read_splits(folder)
        assert 'SECRET' not in json.dumps(train) and len(valid)==20
    assert 'the test split validates' in capsys.readouterr().err

def test_every_seed_has_every_class(tmp_path):
    path = put(tmp_path/'a.csv', 'text,label', *[f'text {i},{"min" if i%50==0 else "maj"}' for i in range(300)])
    for seed in range(30):
        train,valid = read_splits(path, .1, seed)
        assert {r['label'] for r in valid}=={r['label'] for r in train}=={'min', 'maj'} and len(valid)==30

def test_single_records_of_a_class(tmp_path, capsys):
    path = put(tmp_path/'a.csv', 'text,label', *[f'text {i},{f"rare{i}" if i%3==0 else "common"}' for i in range(120)])
    for seed in range(10):
        train,valid = read_splits(path, .1, seed)
        assert {r['label'] for r in valid}=={'common'} and len({r['label'] for r in train})==41
    assert f'{path}: validation has no record of 40 of 41 classes' in capsys.readouterr().err

@needs_data
def test_contexts_and_prompts_stay_together():
    for name,key in (('qa/xquad_en_dev.json', 'source'), ('qa/covidqa_dev.json', 'source'), ('preference/llmbar_dev.jsonl', 'prompt')):
        records = list(read_records(data/name))
        for seed in range(5):
            train,valid = split_records(records, .1, seed)
            assert not {str(r[key]) for r in train} & {str(r[key]) for r in valid}
            assert .05<=len(valid)/len(records)<=.2, (name, len(valid))

# ---------- broken files of every format

def test_every_message_names_the_file(tmp_path):
    "Cut, overwritten and wrongly encoded files of formats that are not text, and files of the wrong kind"
    import datasets, pandas as pd
    pd.DataFrame(rows_of(300)).to_parquet(tmp_path/'a.parquet')
    datasets.Dataset.from_list(list(rows_of(300))).save_to_disk(tmp_path/'saved')
    with gzip.open(tmp_path/'a.csv.gz', 'wt') as f: f.write('text,label\n'+'a,1\n'*500)
    files = [tmp_path/'a.parquet', tmp_path/'a.csv.gz', *(p for p in (tmp_path/'saved').iterdir())]
    rng = random.Random(0)
    n = 0
    for f in files:
        whole = f.read_bytes()
        for i in range(25):
            b = bytearray(whole)
            at = rng.randrange(len(b))
            if i%2: del b[at:]
            else: b[at:at+rng.randint(1, 40)] = bytes(rng.randrange(256) for _ in range(rng.randint(0, 40)))
            f.write_bytes(b)
            src = f.parent if f.parent.name=='saved' else f
            try: list(read_records(src))
            except LmftError as e:
                n += 1
                assert str(src) in str(e) and '\n' not in str(e)
        f.write_bytes(whole)
    assert n>20
    for name,content in {'a.jsonl': b'PAR1', 'b.parquet': b'{"text": "a"}', 'c.json': b'text,label', 'd.csv': b'\x89PNG\r\n\x1a\n\x00\x00', 'e.txt': b'\xff\xfea',
                         'f.jsonl.gz': b'{"text": "a"}', 'g.conll': b'one', 'h.abc': b'one', 'i.json': b'{"a": 1}', 'j.csv': 'text,label\ncafé,1\n'.encode('latin-1')}.items():
        (tmp_path/name).write_bytes(content)
        with pytest.raises(LmftError) as e: list(read_records(tmp_path/name))
        assert str(tmp_path/name) in str(e.value) and '\n' not in str(e.value)
