"Runs that are stopped, that fill a disk, or whose weights are no numbers: one line, and nothing lost; and what W&B holds of a run."
import json, os, signal, subprocess, sys, time

import pytest
from huggingface_hub import ModelCard

from lmft.train.callbacks import wandb_rows
from lmft.train.learner import LMLearner
from lmft.world.documents import corpus
from lmft.world.facts import World
from running import lines, log, metrics, run

code = 'import sys; from lmft.cli import main; sys.exit(main(sys.argv[1:]))'
def weights(out): return {p.name: p.read_bytes() for p in (out/'model').glob('*.safetensors')}

@pytest.fixture(scope='module')
def argv(tmp_path_factory):
    tmp = tmp_path_factory.mktemp('data')
    (tmp/'text.jsonl').write_text(''.join(json.dumps(dict(text=d['text']))+'\n' for d in corpus(World(0), 4000)))
    return [str(a) for a in ['pretrain', '--data', tmp/'text.jsonl', '--vocab_size', 600, '--seq_len', 32, '--arch', 'gpt2', '--max_steps', 40]]

@pytest.fixture(scope='module')
def whole(argv, tmp_path_factory):
    out = tmp_path_factory.mktemp('whole')/'run'
    run(*argv, '--out', out)
    return out

def stopped(argv, out, signum, **kwargs):
    "A run in a process of its own that gets a signal when some rows are logged: (exit code, stderr)"
    child = subprocess.Popen([sys.executable, '-c', code, *argv, '--out', str(out)], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, **kwargs)
    begun = time.time()
    while not ((out/'log.jsonl').exists() and len(lines(out/'log.jsonl'))>2) and child.poll() is None and time.time()<begun+300: time.sleep(.01)
    child.send_signal(signum)
    return child.wait(), child.stderr.read()

@pytest.mark.parametrize('signum', [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_says_how_to_go_on(argv, whole, tmp_path, signum):
    code,err = stopped(argv, tmp_path/'run', signum)
    assert code==128+signum and err.startswith('lmft: stopped after step ') and '--resume' in err and err.count('\n')==1, err
    saved, = (tmp_path/'run'/'checkpoints').glob('step-*')
    assert f'step {int(saved.name[5:])};' in err
    run(*argv, '--out', tmp_path/'run', '--resume')
    assert weights(tmp_path/'run')==weights(whole)

def test_a_full_disk_loses_no_earlier_checkpoint(argv, whole, tmp_path):
    "The operating system rejects files of more than a megabyte to the run that goes on"
    out = tmp_path/'run'
    stopped(argv, out, signal.SIGTERM)
    before = {p: p.read_bytes() for p in (out/'checkpoints').rglob('*') if p.is_file()}
    limit = f'import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (10**6, 10**6)); {code}'
    done = subprocess.run([sys.executable, '-c', limit, *argv, '--out', str(out), '--resume', '--save_every', '1'], capture_output=True, text=True)
    assert done.returncode==2 and done.stderr.count('\n')==1 and 'cannot be written' in done.stderr, done.stderr
    assert {p: p.read_bytes() for p in (out/'checkpoints').rglob('*') if p.is_file()}==before
    run(*argv, '--out', out, '--resume')
    assert weights(out)==weights(whole)

def test_a_full_disk_under_the_log(argv, whole, tmp_path):
    "Files may grow to 600 bytes once training has begun: the log is the first that does not fit"
    limit = f'''
import resource
import lmft.core
from lmft.train.callbacks import StepLog
begun = StepLog.before_train
def full(self):
    begun(self)
    resource.setrlimit(resource.RLIMIT_FSIZE, (600, 600))
StepLog.before_train = full
{code}'''
    done = subprocess.run([sys.executable, '-c', limit, *argv, '--out', str(tmp_path/'run')], capture_output=True, text=True)
    assert done.returncode==2 and done.stderr.count('\n')==1 and 'cannot be written' in done.stderr and '--resume' in done.stderr, done.stderr
    assert (tmp_path/'run'/'log.jsonl').stat().st_size<=600
    run(*argv, '--out', tmp_path/'run', '--resume')
    assert weights(tmp_path/'run')==weights(whole) and log(tmp_path/'run')==log(whole)

def test_a_figure_that_is_no_number_ends_the_run_with_the_text(argv, whole, tmp_path, monkeypatch):
    "A gradient is spoilt at step 7; the run goes on from step 6 without the fault"
    out,steps,backward = tmp_path/'run',[],LMLearner._backward
    def spoilt(self):
        backward(self)
        steps.append(self.train_iter)
        if self.train_iter==6: next(self.model.parameters()).grad[:] = float('nan')
    monkeypatch.setattr(LMLearner, '_backward', spoilt)
    err = run(*argv, '--save_every', 2, '--out', out, code=2)
    assert 'step 7: the gradient is not a finite number' in err and steps==[*range(7)]
    assert not (out/'model').exists() and max(p.name for p in out.glob('checkpoints/step-*'))=='step-00000006'
    monkeypatch.undo()
    run(*argv, '--save_every', 2, '--out', out, '--resume')
    assert weights(out)==weights(whole)

def test_wandb_holds_the_log_and_goes_on_as_one_run(argv, whole, tmp_path):
    "An offline run that is stopped and goes on, read back from its files"
    out,env = tmp_path/'run',os.environ | dict(WANDB_MODE='offline', WANDB_API_KEY='k'*40, HF_TOKEN='hf_nobody-should-see-this')
    argv = [*argv, '--log', 'wandb']
    stopped(argv, out, signal.SIGTERM, env=env)
    done = subprocess.run([sys.executable, '-c', code, *argv, '--out', str(out), '--resume'], env=env, capture_output=True, text=True)
    assert done.returncode==0, done.stderr
    files = sorted(out.glob('wandb/offline-run-*/*.wandb'))
    assert len(files)==2 and len({p.name for p in files})==1                             # two sittings, one run
    until,rows = time.time()+30,{}
    while lines(out/'log.jsonl')[-1]['step'] not in rows and time.time()<until: rows = wandb_rows(files[1])   # W&B's own process writes
    assert {*wandb_rows(files[0])}<={*rows}
    for row in lines(out/'log.jsonl'): assert {k: rows[row['step']][k] for k in row}==row
    assert rows[min(rows)]['samples.ncols']==3 and rows[max(rows)]['samples.nrows']>=6
    for p in out.rglob('*'):
        if p.is_file(): assert b'nobody-should-see' not in p.read_bytes() and b'k'*40 not in p.read_bytes(), p
    assert b'model-card' in files[1].read_bytes()

def test_a_key_that_wandb_refuses(argv, tmp_path, monkeypatch):
    monkeypatch.setenv('WANDB_MODE', 'online')
    monkeypatch.setenv('WANDB_API_KEY', 'short')
    err = run(*argv, '--log', 'wandb', '--out', tmp_path/'run', code=2)
    assert 'W&B cannot be opened' in err and 'WANDB_MODE=offline' in err
    assert not [*(tmp_path/'run').iterdir()]                                   # the corrected command needs no --overwrite

def test_the_card_of_a_model_tells_what_was_done(whole):
    card = ModelCard.load(whole/'model'/'README.md')
    assert card.data.library_name=='transformers' and card.data.tags==['lmft', 'pretrain'] and not card.data.get('base_model')
    assert f"| valid_loss | {metrics(whole)['valid_loss']:.4g} |" in card.text and '| seq_len | 32 |' in card.text
    assert card.text.count('- step ')==6

def test_a_full_memory_gives_the_estimate_and_what_would_need_less(argv, tmp_path):
    "The process may take a little more address space than it has when training begins"
    limit = f'''
import resource
import lmft.core
from fastai.learner import Learner
fit = Learner.fit
def small(self, *args, **kwargs):
    now = int(next(l.split()[1] for l in open('/proc/self/status') if l.startswith('VmSize')))*1024
    resource.setrlimit(resource.RLIMIT_AS, (now+2**28, resource.RLIM_INFINITY))
    try: return fit(self, *args, **kwargs)
    finally: resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
Learner.fit = small
{code}'''
    argv = [*argv[:argv.index('--seq_len')], '--seq_len', '256', '--bs', '64', '--vocab_size', '4096', '--max_steps', '2']
    done = subprocess.run([sys.executable, '-c', limit, *argv, '--out', str(tmp_path/'run')], capture_output=True, text=True)
    assert done.returncode==2 and done.stderr.count('\n')==1, done.stderr
    assert 'the memory is full at' in done.stderr and 'by estimate it takes' in done.stderr and '--bs 32 --n_acc 2' in done.stderr, done.stderr

def test_a_memory_that_is_full_before_the_first_step(argv, tmp_path, monkeypatch):
    "Moving the model to its device may be what does not fit: one line as well, and nothing is left behind"
    def full(*args, **kwargs): raise MemoryError
    monkeypatch.setattr('lmft.train.learner.HFModel.to', full)
    assert 'the memory is full at' in run(*argv, '--out', tmp_path/'run', code=2)
    assert not (tmp_path/'run').exists()
