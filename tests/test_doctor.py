"The doctor on real data: no false alarm on thirteen clean sets, and what it says of the others is true"
import json
from collections import Counter, defaultdict

import pytest

from lmft.core import LmftError, set_seed
from lmft.data.tokenizers import train_tokenizer
from lmft.check.doctor import checks, examine, reject
from lmft.models.loading import new_model, save_model
from lmft.data.records import read_records
from lmft.data.splits import split_records
from lmft.stages.diagnosis import doctor

# Taken as they are. Rows are long enough for every answer, so that none is cut; duplicates would be a true finding,
# and the sets that have some are examined below.
clean = ['text/alice.txt', 'text/moby_dick.txt', 'text/tinyshakespeare.txt', 'chat/fastchat_dummy_sharegpt.json', 'chat/sgd_dev.jsonl',
         'instruct/dolly_fragment_dev.jsonl', 'instruct/gpteacher_roleplay_dev.jsonl', 'instruct/gsm8k_alpaca_dev.jsonl',
         'instruct/self_instruct_seed_dev.jsonl', 'instruct/self_instruct_user_oriented_dev.jsonl',
         'preference/llmbar_dev.jsonl', 'sentiment/goemotions_group_dev.jsonl', 'sentiment/sst2_dev.jsonl']

# What is known to be wrong with public sets: repeats, near-copies, the same prompt on both sides
blemished = ['abc/nottingham_dev.abc', 'instruct/gpteacher_codegen_dev.jsonl', 'ner/emerging.dev.conll', 'ner/sec_FIN5.conll',
             'ner/wnut17train.conll', 'preference/dpo_en_demo_dev.jsonl', 'preference/hh_harmless_dev.jsonl',
             'preference/pandalm_dev.jsonl', 'natural_instructions/tasks']

@pytest.fixture(scope='module')
def model(data, tmp_path_factory):
    "A tiny model with room for long conversations, and its tokenizer"
    set_seed(0)
    tok = train_tokenizer((r['text'] for r in read_records(data/'text/time_machine.txt')), 2048)
    path = tmp_path_factory.mktemp('doctor')/'model'
    save_model(new_model(tok, 'tiny', seq_len=8192), tok, path)
    return path

@pytest.mark.parametrize('name', clean)
def test_no_false_alarm(data, model, name):
    assert doctor(data/name)==[]
    for method in ('full', 'lora'):
        assert doctor(data/name, model, method=method, seq_len=512 if name.startswith('text') else 8192)==[]

def text_of(r):
    "All texts of a record as one, and as the unit of the search for runs of words"
    said = r.get('text') or ' '.join(r.get('tokens', ())) or ' '.join([r[k] for k in ('instruction', 'input', 'output') if k in r])
    if 'chosen' in r: said = ' '.join([r['prompt'] if isinstance(r['prompt'], str) else ' '.join(m['content'] for m in r['prompt']), r['chosen'], r['rejected']])
    return ' '.join(said.lower().split())

def by_brute_force(train, valid):
    "Repeats in training, validation texts that stand there, and those of which half the 13-word runs do, without any hash"
    n,texts = Counter(map(text_of, train)),defaultdict(set)
    for i,r in enumerate(train):
        words = text_of(r).split()
        for k in range(len(words)-12): texts[tuple(words[k:k+13])].add(i)
    copies = [i for i,r in enumerate(valid) if text_of(r) in n]
    inside = []
    for i,r in enumerate(valid):
        words = text_of(r).split()
        runs = [tuple(words[k:k+13]) for k in range(len(words)-12)]
        if runs and i not in copies and sum(0<len(texts.get(g, ()))<=10 for g in runs)/len(runs)>=.5: inside.append(i)
    return len(train)-len(n), copies, inside

@pytest.mark.parametrize('name', blemished)
def test_what_is_found_is_true(data, name):
    "Every finding, with its number and its first record, is what a search without hashes finds"
    train,valid = split_records(list(read_records(data/name)), .05)
    repeats,copies,inside = by_brute_force(train, valid)
    found = doctor(data/name, valid=.05)
    begins = [f'{repeats} of {len(train)} training records']*bool(repeats)
    begins += [f'{len(hits)} of {len(valid)} validation records (first: number {hits[0]+1},' for hits in (copies, inside) if hits]
    assert begins and len(found)==len(begins)
    for f,start in zip(found, begins): assert f.text.startswith(start) and not f.fault

def test_questions_about_one_text_are_no_leak(data):
    "SQuAD's paragraphs stand on both sides of a random split; the questions do not"
    for name in ('xquad_en_dev.json', 'covidqa_dev.json'):
        assert {f.check for f in doctor(data/'qa'/name)}<={'duplicates'}

def gsm8k(data): return list(read_records(data/'instruct/gsm8k_alpaca_dev.jsonl'))[:200]

faults = {'duplicates': lambda rs: rs+rs[:3],
          'evaluation text in training': lambda rs: rs+[dict(r, output=f"Somebody said: {r['instruction']} {r['output']} So it goes.") for r in rs[:40]]}

@pytest.mark.parametrize('fault', faults)
def test_seeded_in_a_file(data, model, tmp_path, fault):
    "A fault written into a real set is found by the command's function"
    path = tmp_path/'seeded.jsonl'
    path.write_text('\n'.join(map(json.dumps, faults[fault](gsm8k(data)))))
    found = doctor(path, model, valid=.2, seq_len=1024)
    assert [f.check for f in found]==[fault]
    reject(found)                                                           # a warning: training goes on

def test_the_readers_refuse_what_they_can(data):
    "Bad records end the examination, exit code 2 of the command, unless they are to be skipped"
    with pytest.raises(LmftError, match='rejected'): doctor(data/'broken/preference_chosen_equals_rejected.jsonl')
    bad = []
    doctor(data/'broken/alpaca_null_output.json', valid=.5, on_bad='skip', bad=bad)
    assert len(bad)==2

def test_a_finding_is_one_line(data, model):
    found = doctor(data/'instruct/gpteacher_codegen_dev.jsonl', model, seq_len=64, lr=1., method='lora')
    assert {'answers cut', 'learning rate'}<={f.check for f in found}
    assert all('\n' not in str(f) for f in found)

def test_there_are_twenty_three(): assert len(checks)==23
