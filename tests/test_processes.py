"Two processes on the CPU: the same weights and figures as one; killed and gone on, the same bits; errors said once."
import json, os, signal, subprocess, sys, time

import psutil, pytest, torch
from fastai.callback.core import Callback, CancelFitException
from safetensors.torch import load_file

from lmft.data.tokenizers import train_tokenizer
from lmft.train.checkpoints import Checkpoint, weights_hash
from lmft.core import set_seed
from lmft.train.learner import lm_learner
from lmft.models.loading import new_model, save_model
from lmft.stages.pretraining import mlm_dls
from lmft.world.documents import corpus
from lmft.world.facts import World
from lmft.world.tasks import instruction_rows
from running import figures, lines, log, run

child = "import json, sys; from lmft.cli import main; sys.exit(max(main(a) for a in json.loads(sys.argv[1])))"
fsdp = dict(ACCELERATE_USE_FSDP='true', FSDP_VERSION='2')

def torchrun(*commands, log=subprocess.PIPE, n=2, **more):
    "Start commands, one after the other, on two processes"
    argv = json.dumps([[str(a) for a in c] for c in commands])
    env = os.environ | dict(OMP_NUM_THREADS='1') | more
    return subprocess.Popen([sys.executable, '-m', 'torch.distributed.run', '--nproc_per_node', str(n), '--no-python', sys.executable,
                             '-c', child, argv], env=env, stdout=subprocess.DEVNULL, stderr=log, text=True)

def weights(out): return load_file(next((out/'model').glob('*.safetensors')))

@pytest.fixture(scope='module')
def commands(tmp_path_factory):
    "Name → arguments of a run of a dozen steps; `drop` has dropout, and steps that end with one row for two processes"
    tmp,world = tmp_path_factory.mktemp('data'),World(0)
    docs = list(corpus(world, 6000))
    (tmp/'text.jsonl').write_text(''.join(json.dumps(dict(text=d['text']))+'\n' for d in docs))
    rows = [{k: r[k] for k in ('instruction', 'input', 'output')} for r in instruction_rows(world, 3)]
    (tmp/'asks.jsonl').write_text(''.join(json.dumps(r)+'\n' for r in rows[:70]))
    tok = train_tokenizer((d['text'] for d in docs), 600)
    for name,p in (('base', 0.), ('drop', .1)):
        torch.manual_seed(0)
        save_model(new_model(tok, arch='gpt2', attn_pdrop=p, resid_pdrop=p, embd_pdrop=p), tok, tmp/name)
    text = ['pretrain', '--data', tmp/'text.jsonl', '--seq_len', 32, '--max_steps', 12, '--optimizer', 'adamw']
    mlm = [*text, '--vocab_size', 600, '--objective', 'mlm+nsp', '--bs', 15]
    sft = ['sft', '--data', tmp/'asks.jsonl', '--model', tmp/'base', '--method', 'lora', '--seq_len', 128, '--bs', 5, '--max_steps', 16]
    return dict(clm=[*text, '--vocab_size', 600, '--bs', 7, '--n_acc', 3], mlm=mlm, sft=sft,
                drop=[*text, '--model', tmp/'drop', '--bs', 8, '--n_acc', 3, '--max_steps', 14, '--save_every', 4])

@pytest.fixture(scope='module')
def two(commands, tmp_path_factory):
    "Folder of the runs on two processes"
    tmp = tmp_path_factory.mktemp('two')
    job = torchrun(*([*c, '--out', tmp/name] for name,c in commands.items()))
    err = job.communicate()[1]
    assert job.returncode==0, err
    return tmp

@pytest.mark.parametrize('name', ['clm', 'mlm', 'sft'])
def test_two_processes_are_one(commands, two, tmp_path, name):
    "The sums are the same but for their order, which moved weights by 4e-5 at most when this was written"
    run(*commands[name], '--out', tmp_path/name)
    one,other = weights(tmp_path/name),weights(two/name)
    assert one.keys()==other.keys()
    for k in one: torch.testing.assert_close(other[k], one[k], atol=2e-4, rtol=0, msg=k)
    for a,b in zip(log(tmp_path/name), log(two/name), strict=True):
        assert {k: a[k] for k in ('step', 'tokens', 'lr')}=={k: b[k] for k in ('step', 'tokens', 'lr')}
        assert a==pytest.approx(b, abs=1e-5)
    assert figures(tmp_path/name)==pytest.approx(figures(two/name), abs=1e-5)
    assert sorted(p.name for p in (two/name).rglob('*'))==sorted(p.name for p in (tmp_path/name).rglob('*'))

def test_both_killed_and_gone_on(commands, two, tmp_path):
    "SIGKILL of the launcher and both processes; one process alone may not go on, two come to the same bits"
    out = tmp_path/'run'
    argv = [*commands['drop'], '--out', out]
    job,begun = torchrun(argv, log=subprocess.DEVNULL),time.time()
    while job.poll() is None and not (out/'checkpoints/step-00000008').exists() and time.time()<begun+120: time.sleep(.01)
    family = psutil.Process(job.pid).children(recursive=True)
    for p in [psutil.Process(job.pid), *family]: p.send_signal(signal.SIGKILL)
    job.wait()
    psutil.wait_procs(family, timeout=10)
    assert not (out/'metrics.json').exists(), 'the run ended before it was killed'
    assert 'processes is 1, it was 2' in run(*argv, '--resume', code=2)
    job = torchrun([*argv, '--resume'])
    err = job.communicate()[1]
    assert job.returncode==0, err
    mine,whole = weights(out),weights(two/'drop')
    assert all(torch.equal(mine[k], whole[k]) for k in whole) and log(out)==log(two/'drop')

@pytest.fixture(scope='module')
def divided(commands, tmp_path_factory):
    "Folder of twenty steps on two processes that each hold a part of the model (FSDP2), and their commands"
    tmp,steps = tmp_path_factory.mktemp('divided'),['--max_steps', 20, '--save_every', 12]
    both = {'clm': [*commands['clm'], *steps, '--lr', 1e-3, '--eps', 1e-6], 'sft': [*commands['sft'], *steps]}
    job = torchrun(*([*c, '--out', tmp/name] for name,c in both.items()), **fsdp)
    err = job.communicate()[1]
    assert job.returncode==0, err
    return tmp,both

@pytest.mark.parametrize('name', ['clm', 'sft'])
def test_a_divided_model_is_the_same(divided, tmp_path, name):
    "Weights were 3e-7 apart when this was written; with an eps of 1e-8, one embedding of 86,400 whose gradient is as small, 1.4e-5"
    folder,argv = divided
    run(*argv[name], '--out', tmp_path/name)
    one,other = weights(tmp_path/name),weights(folder/name)
    assert one.keys()==other.keys()
    for k in one: torch.testing.assert_close(other[k], one[k], atol=1e-5, rtol=0, msg=k)
    for a,b in zip(log(tmp_path/name), log(folder/name), strict=True): assert a==pytest.approx(b, abs=1e-4)
    assert figures(tmp_path/name)==pytest.approx(figures(folder/name), abs=1e-5)
    assert sorted(p.name for p in (folder/name).rglob('*'))==sorted(p.name for p in (tmp_path/name).rglob('*'))

def test_a_divided_model_goes_on_in_one_process(divided, tmp_path):
    "Two processes are killed at a checkpoint in parts; one process takes it up"
    folder,argv = divided
    job,begun = torchrun([*argv['clm'], '--out', tmp_path/'run'], log=subprocess.DEVNULL, **fsdp),time.time()
    kept = tmp_path/'run/checkpoints/step-00000012'
    while job.poll() is None and not kept.exists() and time.time()<begun+300: time.sleep(.01)
    family = psutil.Process(job.pid).children(recursive=True)
    for p in [psutil.Process(job.pid), *family]: p.send_signal(signal.SIGKILL)
    job.wait()
    psutil.wait_procs(family, timeout=10)
    assert sorted(p.suffix for p in kept.iterdir())==['.json', '.safetensors', '.safetensors']
    assert not (tmp_path/'run/metrics.json').exists(), 'the run ended before it was killed'
    run(*argv['clm'], '--out', tmp_path/'run', '--resume')
    one,whole = weights(tmp_path/'run'),weights(folder/'clm')
    for k in whole: torch.testing.assert_close(one[k], whole[k], atol=1e-5, rtol=0, msg=k)

def test_muon_on_two_processes(commands, tmp_path):
    "Muon rounds to bf16, so weights differ; the losses of one process, of two, and of a divided model were .0005 apart when this was written"
    argv = [*commands['clm'], '--optimizer', 'muon', '--lr', 1e-2]
    run(*argv, '--out', tmp_path/'one')
    for name,env in dict(two={}, divided=fsdp).items():
        job = torchrun([*argv, '--out', tmp_path/name], **env)
        err = job.communicate()[1]
        assert job.returncode==0, err
        assert figures(tmp_path/name)['valid_loss']==pytest.approx(figures(tmp_path/'one')['valid_loss'], abs=.01)

def test_an_error_is_said_once(commands, tmp_path):
    (tmp_path/'broken.jsonl').write_text('{"text": "fine"}\n{"text": nul}\n')
    job = torchrun(['pretrain', '--data', tmp_path/'broken.jsonl', '--out', tmp_path/'new'])
    err = job.communicate()[1]
    said = [l for l in err.splitlines() if l.startswith('lmft: ')]
    assert job.returncode and len(said)==1 and 'broken.jsonl:2' in said[0], err
    assert 'exitcode  : 2' in err and not (tmp_path/'new').exists()

class StopAt5(Callback):
    order = Checkpoint.order+1
    def after_batch(self):
        if self.training and self.learn.train_iter==5: raise CancelFitException()

def test_masks_drawn_by_workers(commands, tmp_path):
    "A masked run with two workers, stopped within its first epoch and gone on, comes to the same bits"
    rows = lines(next(p for p in commands['mlm'] if str(p).endswith('text.jsonl')))
    tok = train_tokenizer((r['text'] for r in rows), 400)
    def fit(folder, *cbs, **kwargs):
        set_seed(0)
        dls = mlm_dls(rows[:25], rows[25:30], tok, 32, bs=16, device='cpu')
        dls.train.fake_l.num_workers = 2
        model = new_model(tok, arch='bert', hidden_size=48, intermediate_size=96, hidden_dropout_prob=.1)
        learn = lm_learner(dls, model, cbs=[Checkpoint(tmp_path/folder, every=2, **kwargs), *cbs])
        with learn.no_bar(), learn.no_logging(): learn.fit_cos(2)
        return learn.train_iter,weights_hash(learn.model)
    whole,half = fit('whole'),fit('half', StopAt5())
    assert half[0]==5<whole[0]//2 and half!=whole and fit('half', resume=True)==whole

@pytest.mark.parametrize('argv', [['generate', '--model', 'x'], ['doctor', '--data', 'x'], ['tour', '--out', 'x'],
                                  ['ppo', '--prompts', 'x', '--model', 'x', '--reward', 'x', '--out', 'x']])
def test_what_one_process_does_is_refused(monkeypatch, argv):
    monkeypatch.setenv('WORLD_SIZE', '2')
    assert 'runs in one process' in run(*argv, code=2)
    assert not os.path.exists('x')
