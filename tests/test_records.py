"What a cell of nbs/02_records.ipynb cannot hold: the real files, the broken files, memory on larger files, random damage"
import gzip, json, os, random, tracemalloc
from pathlib import Path

import pytest

from lmft.core import BadRecord, LmftError
from lmft.data.files import fingerprint
from lmft.data.shapes import normalise, shape_of
from lmft.data.records import read_records

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
    for _ in range(3_000):
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
