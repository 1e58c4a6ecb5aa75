"Pretraining from text on disk: memory that does not follow its size, and work that a killed run does not repeat."
import errno, json, os, re, signal, subprocess, sys, time
from pathlib import Path

import pytest
import torch

from lmft.data import ondisk
from lmft.data.examples import clm_examples
from lmft.data.tokenizers import load_tokenizer, train_tokenizer
from lmft.data.loaders import lm_dls
from lmft.core import LmftError
from lmft.data.ondisk import records_on_disk, tokens_on_disk
from lmft.stages.pretraining import masked_dls, mlm_dls, mlm_examples
from lmft.data.records import read_records
from lmft.data.splits import split_places, split_records
from lmft.world.documents import corpus
from lmft.world.facts import World
from running import metrics, run

docs = [d['text'] for d in corpus(World(0), 60_000)]

def write(path, n_bytes):
    "Numbered documents; as `.txt`, one long text"
    n,i = 0,0
    with open(path, 'w') as f:
        while n<n_bytes:
            text = f'{i}. {docs[i%len(docs)]}'
            n += f.write((json.dumps(dict(text=text)) if path.suffix=='.jsonl' else text+'\n')+'\n')
            i += 1
    return path

@pytest.fixture(scope='module')
def tok(tmp_path_factory):
    path = tmp_path_factory.mktemp('tok')
    train_tokenizer(docs, 512).save_pretrained(path)
    return path

@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv('LMFT_CACHE', str(tmp_path/'cache'))
    monkeypatch.setattr(ondisk, 'shard_bytes', 2**15)
    return tmp_path/'cache'

tokenise = '''
import sys
from lmft.data import ondisk
from lmft.data.loaders import lm_dls; from lmft.data.tokenizers import load_tokenizer
ondisk.shard_bytes = int(sys.argv[3])
tok = load_tokenizer(sys.argv[1])
exs = ondisk.tokens_on_disk(ondisk.records_on_disk(sys.argv[2]), tok, 64)
dls = lm_dls(exs, exs[:8], tok, 64, device='cpu')
for b,_ in zip(dls.train, range(20)): pass
'''
def child(*argv): return subprocess.Popen([sys.executable, '-c', tokenise, *map(str, argv)], stderr=subprocess.DEVNULL)

def peak(*argv):
    "Largest RssAnon of a process, in MB"
    p,most = child(*argv),0
    while p.poll() is None:
        found = re.search(r'RssAnon:\s+(\d+)', Path(f'/proc/{p.pid}/status').read_text())
        most = max(most, int(found[1])/1024 if found else 0)
        time.sleep(.01)
    assert p.returncode==0
    return most

@pytest.mark.skipif(not Path('/proc/self/status').exists(), reason='Linux tells what a process holds')
def test_flat(tok, tmp_path, monkeypatch):
    "Four times the text; lists would hold more than ten times the six megabytes between"
    monkeypatch.setenv('LMFT_CACHE', str(tmp_path/'cache'))
    small,large = (peak(tok, write(tmp_path/f'{mb}.jsonl', mb*10**6), 2**20) for mb in (2, 8))
    assert large-small < 15, (small, large)

def batches(dls): return [list(dl) for dl in dls]

@pytest.mark.parametrize('suffix', ['txt', 'jsonl', 'jsonl.gz'])
def test_same_batches(tok, tmp_path, cache, suffix):
    "Those of the lists, packed, padded and masked, over two epochs"
    tok,path = load_tokenizer(tok),write(tmp_path/f"text.{suffix.removesuffix('.gz')}", 100_000)
    if suffix.endswith('gz'): subprocess.run(['gzip', path], check=True); path = path.with_name(path.name+'.gz')
    listed,records = list(read_records(path)),records_on_disk(path)
    assert list(records)==listed and len(records.shards)>2
    (a,b),(c,d) = split_records(listed, .1, 3),(records[p] for p in split_places(records, .1, 3))
    assert (list(c), list(d))==(a, b)
    sides = [(clm_examples(r, tok, 48), tokens_on_disk(q, tok, 48)) for r,q in ((a, c), (b, d))]
    kw = dict(tok=tok, bs=4, n_acc=2, seed=1, device='cpu')
    pairs = [[lm_dls(*exs, seq_len=48, packed=packed, **kw) for exs in zip(*sides)] for packed in (True, False)]
    masked = [tokens_on_disk(q, tok, 48, mlm_examples) for q in (c, d)]
    pairs.append([mlm_dls(a, b, seq_len=48, **kw), masked_dls(*masked, **kw)])
    for one,two in pairs:
        for epoch in range(2): torch.testing.assert_close(batches(one), batches(two), rtol=0, atol=0)

def mtimes(folder): return {p.name: p.stat().st_mtime_ns for p in folder.glob('*.safetensors')}

def test_killed_while_tokenising(tok, tmp_path, cache):
    "The second run makes what was not whole, and no more"
    path = write(tmp_path/'text.jsonl', 6*10**5)
    records_on_disk(path)
    p,begun = child(tok, path, 2**15),time.time()
    while len(list(cache.glob('tokens-*/0*.safetensors')))<5 and time.time()<begun+60: time.sleep(.002)
    p.send_signal(signal.SIGKILL)
    p.wait()
    folder, = cache.glob('tokens-*/')
    before = mtimes(folder)
    assert not (folder/'done.json').exists() and len(before)>=5
    exs = tokens_on_disk(records_on_disk(path), load_tokenizer(tok), 64)
    after = mtimes(folder)
    assert exs.folder==folder and len(after)>len(before) and {k: after[k] for k in before}==before
    assert not list(folder.glob('.*.tmp'))
    whole = clm_examples(list(read_records(path)), load_tokenizer(tok), 64)
    assert len(whole)==len(exs) and all(torch.equal(a['input_ids'], b['input_ids']) for a,b in zip(whole, exs))

def test_damaged_and_changed(tok, tmp_path, cache):
    tok,path = load_tokenizer(tok),write(tmp_path/'text.jsonl', 150_000)
    exs = tokens_on_disk(records_on_disk(path), tok, 64)
    folder,want = exs.folder,[e['input_ids'].tolist() for e in exs]
    shard,before = folder/'000002.safetensors',mtimes(folder)
    good = shard.read_bytes()
    for bad in (good[:-1], good[:-9]+bytes([good[-9]^4])+good[-8:], b''):
        shard.write_bytes(bad)
        again = tokens_on_disk(records_on_disk(path), tok, 64)
        assert [e['input_ids'].tolist() for e in again]==want and shard.read_bytes()==good
    assert [k for k,v in mtimes(folder).items() if v!=before[k]]==[shard.name]
    path.write_text(path.read_text().replace('0. ', '0, ', 1))
    assert tokens_on_disk(records_on_disk(path), tok, 64).folder!=folder

def test_no_room(tmp_path, cache, monkeypatch):
    "One line that says where, and no half of a run"
    def full(*args, **kwargs): raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    monkeypatch.setattr(ondisk, 'save_file', full)
    told = run('pretrain', '--data', write(tmp_path/'text.txt', 10_000), '--out', tmp_path/'out', code=2)
    assert 'No space left' in told and '$LMFT_CACHE' in told and str(cache) in told
    assert not (tmp_path/'out').exists()

def test_command_skips_and_tells(tmp_path, cache):
    "Bad records are listed whether the text is read or found in the cache; the weights are the same"
    path = write(tmp_path/'text.jsonl', 30_000)
    path.write_text(path.read_text()+'{"text": 3}\n')
    argv = ['pretrain', '--data', path, '--on_bad', 'skip', '--vocab_size', 300, '--seq_len', 32, '--max_steps', 2]
    assert 'text' in run(*argv[:3], '--out', tmp_path/'none', code=2)
    for out in ('one', 'two'): run(*argv, '--out', tmp_path/out)
    assert metrics(tmp_path/'one')['bad_records']==metrics(tmp_path/'two')['bad_records']==1
    for name in ('bad_records.jsonl', 'model/model.safetensors'):
        assert (tmp_path/'one'/name).read_bytes()==(tmp_path/'two'/name).read_bytes()
