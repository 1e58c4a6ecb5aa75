"Text as a stream: killed and gone on, the same bits; two processes are one; a server in the place of a disk."
import functools, http.server, json, os, random, re, signal, subprocess, sys, threading, time
from pathlib import Path

import pytest, torch
from safetensors.torch import load_file

from lmft.core import LmftError, said
from lmft.data.streaming import TextStream
from lmft.data.tokenizers import train_tokenizer
from lmft.models.loading import new_model, save_model
from lmft.world.documents import corpus
from lmft.world.facts import World
from running import figures, log, metrics, run

child = 'import json, sys; from lmft.cli import main; sys.exit(main(json.loads(sys.argv[1])))'
docs = [d['text'] for d in corpus(World(0), 40_000)]

def start(argv, processes=1):
    "A command on one or two processes of their own"
    torchrun = ['-m', 'torch.distributed.run', '--nproc_per_node', '2', '--no-python', sys.executable] if processes==2 else []
    return subprocess.Popen([sys.executable, *torchrun, '-c', child, json.dumps([str(a) for a in argv])], stderr=subprocess.PIPE, text=True,
                            env=os.environ | dict(OMP_NUM_THREADS='1'), stdout=subprocess.DEVNULL)

def weights(out): return load_file(out/'model'/'model.safetensors')

@pytest.fixture(scope='module')
def argv(tmp_path_factory):
    "A run of 30 steps, with dropout, over three shards in blocks of some twenty documents"
    tmp = tmp_path_factory.mktemp('shards')
    for i in range(3): (tmp/f'{i}.jsonl').write_text(''.join(json.dumps(dict(text=t))+'\n' for t in docs[i+1::4]))
    (tmp/'held.jsonl').write_text(''.join(json.dumps(dict(text=t))+'\n' for t in docs[::40]))
    tok = train_tokenizer(docs, 600)
    torch.manual_seed(0)
    for name,p in (('base', .1), ('still', 0.)): save_model(new_model(tok, arch='gpt2', attn_pdrop=p, resid_pdrop=p, embd_pdrop=p), tok, tmp/name)
    return ['pretrain', '--data', tmp/'?.jsonl', '--valid', tmp/'held.jsonl', '--model', tmp/'base', '--streaming', '--shuffle_buffer', .004,
            '--seq_len', 32, '--bs', 8, '--n_acc', 2, '--max_steps', 30, '--save_every', 4]

@pytest.fixture(scope='module')
def whole(argv, tmp_path_factory):
    out = tmp_path_factory.mktemp('whole')/'run'
    run(*argv, '--out', out)
    return out

@pytest.mark.parametrize('workers', [0, 1])
def test_killed_and_gone_on(argv, whole, tmp_path, workers):
    "SIGKILL at some moment, then --resume: the same weights and log; workers change nothing, and leave no process"
    out,rng = tmp_path/'run',random.Random(workers)
    job,begun = start([*argv, '--workers', workers, '--out', out]),time.time()
    while job.poll() is None and not any(int(p.name[5:])>=8 for p in (out/'checkpoints').glob('step-*')) and time.time()<begun+300: time.sleep(.005)
    time.sleep(rng.random()*.05)
    job.send_signal(signal.SIGKILL)
    job.wait()
    assert not (out/'metrics.json').exists(), 'the run ended before it was killed'
    run(*argv, '--workers', workers, '--out', out, '--resume')
    mine,theirs = weights(out),weights(whole)
    assert all(torch.equal(mine[k], theirs[k]) for k in theirs) and log(out)==log(whole) and figures(out)==figures(whole)

def test_two_processes_are_one(argv, tmp_path):
    "Both read the same stream, and each trains on its own part of every step"
    argv = [*argv, '--model', argv[argv.index('--model')+1].with_name('still'), '--max_steps', 12]
    job = start([*argv, '--out', tmp_path/'two'], processes=2)
    assert not job.wait(timeout=300), job.stderr.read()
    run(*argv, '--out', tmp_path/'one')
    one,two = weights(tmp_path/'one'),weights(tmp_path/'two')
    for k in one: torch.testing.assert_close(two[k], one[k], atol=2e-4, rtol=0, msg=k)
    assert [r['tokens'] for r in log(tmp_path/'one')]==[r['tokens'] for r in log(tmp_path/'two')]
    assert figures(tmp_path/'one')==pytest.approx(figures(tmp_path/'two'), abs=1e-4)

@pytest.fixture
def server(argv):
    "The folder of the shards, by HTTP; ranges of bytes are answered, as every real server does"
    class Ranges(http.server.SimpleHTTPRequestHandler):
        def do_GET(self):
            whole = Path(self.translate_path(self.path)).read_bytes()
            asked = re.match(r'bytes=(\d+)-(\d*)', self.headers.get('Range') or '')
            a,b = (int(asked[1]), min(int(asked[2] or len(whole)-1), len(whole)-1)) if asked else (0, len(whole)-1)
            self.send_response(206 if asked else 200)
            told = {'Accept-Ranges': 'bytes', 'Content-Length': b+1-a, 'Content-Range': f'bytes {a}-{b}/{len(whole)}'}
            for k,v in told.items(): self.send_header(k, str(v))
            self.end_headers()
            self.wfile.write(whole[a:b+1])
        def log_message(self, *args): pass
    site = http.server.ThreadingHTTPServer(('127.0.0.1', 0), functools.partial(Ranges, directory=argv[4].parent))
    threading.Thread(target=site.serve_forever, daemon=True).start()
    yield f'http://127.0.0.1:{site.server_address[1]}'
    site.shutdown()

def test_urls(argv, server):
    "Shards of JSON lines, plain and zipped, and of Parquet: the records of the same files"
    pytest.importorskip('aiohttp')
    import gzip, pandas as pd
    held,folder = argv[4],argv[4].parent
    (folder/'z.jsonl.gz').write_bytes(gzip.compress((folder/'0.jsonl').read_bytes()))
    pd.read_json(folder/'0.jsonl', lines=True).to_parquet(folder/'0.parquet')
    for name in ('0.jsonl', 'z.jsonl.gz', '0.parquet'):
        here,there = (TextStream(f'{at}/{name}', held) for at in (folder, server))
        assert list(here)==list(there) and len(here)>50
    with pytest.raises(LmftError, match='missing.jsonl'): TextStream(f'{server}/missing.jsonl', held)
    with pytest.raises(LmftError, match='format is not read'): TextStream(f'{server}/page.html', held)

def test_rejected_before_anything_is_read(argv, tmp_path):
    "One line with the fix, and no folder"
    def told(*more, drop=()):
        kept = [a for i,a in enumerate(argv) if not any(d in (a, argv[i-1]) for d in drop)]
        return run(*kept, *more, '--out', tmp_path/'out', code=2)
    assert '--max_steps' in told(drop=['--max_steps'])
    assert 'no length to take a fraction of' in told('--valid', .3)
    assert 'no file has such a name' in told('--data', tmp_path/'*.jsonl', drop=['--data'])
    assert 'sentence pairs' in told('--objective', 'mlm+nsp', '--model', 'tiny', '--vocab_size', 600)
    assert 'shuffle_buffer is' in told('--shuffle_buffer', 0)
    (tmp_path/'bad.jsonl').write_text('{"text": "fine"}\n{"text": nul}\n')
    assert 'bad.jsonl:2' in told('--data', tmp_path/'bad.jsonl', drop=['--data'])
    assert not (tmp_path/'out').exists()

def test_bad_records_are_counted(argv, tmp_path):
    "The first is said, all are counted up to the end of the last block that was trained on"
    lines = Path(argv[2].parent/'0.jsonl').read_text().splitlines()
    lines[5::10] = ['{"text": 7}']*len(lines[5::10])
    (tmp_path/'some.jsonl').write_text('\n'.join(lines))
    run(*argv[:2], tmp_path/'some.jsonl', *argv[3:], '--on_bad', 'skip', '--max_steps', 4, '--out', tmp_path/'run')
    n,stream = metrics(tmp_path/'run')['bad_records'],TextStream(tmp_path/'some.jsonl', argv[4], on_bad='skip', block=.004)
    assert n in [bad for _,(at,records,bad) in zip(range(20), stream.blocks())]
    assert 0<n and 'some.jsonl:6' in ''.join(said) and not (tmp_path/'run/bad_records.jsonl').exists()
