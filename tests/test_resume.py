"Runs that are killed at any moment and go on to the same weights, bit for bit; `LMFT_SLOW=1` kills ten of each kind."
import json, os, random, signal, subprocess, sys, time

import pytest

from lmft.world.documents import corpus
from lmft.world.facts import World
from lmft.world.tasks import instruction_rows
from running import figures, log, run

def weights(out): return {p.name: p.read_bytes() for p in (out/'model').glob('*.safetensors')}

@pytest.fixture(scope='module')
def commands(tmp_path_factory):
    "Name → arguments of a run of some thirty steps over two epochs, with dropout where the model has it"
    tmp,world = tmp_path_factory.mktemp('data'),World(0)
    (tmp/'text.jsonl').write_text(''.join(json.dumps(dict(text=d['text']))+'\n' for d in corpus(world, 6000)))
    rows = [{k: r[k] for k in ('instruction', 'input', 'output')} for r in instruction_rows(world, 3)]
    (tmp/'asks.jsonl').write_text(''.join(json.dumps(r)+'\n' for r in rows))
    text = ['pretrain', '--data', tmp/'text.jsonl', '--vocab_size', 600, '--seq_len', 32]
    run(*text, '--max_steps', 2, '--out', tmp/'base')
    ranked = [dict(prompt=r['instruction'], responses=[r['output'], f"{r['output']} no"], ranks=[1, 2]) for r in rows]
    (tmp/'ranked.jsonl').write_text(''.join(json.dumps(r)+'\n' for r in ranked))
    run('reward', '--data', tmp/'ranked.jsonl', '--model', tmp/'base', '--max_steps', 2, '--out', tmp/'rm')
    return dict(clm=[*text, '--arch', 'gpt2', '--bs', 8, '--n_acc', 2, '--max_steps', 30],
                mlm=[*text, '--objective', 'mlm', '--bs', 16, '--max_steps', 30, '--optimizer', 'muon', '--z_loss', 1e-4],
                sft=['sft', '--data', tmp/'asks.jsonl', '--model', tmp/'base', '--method', 'lora', '--seq_len', 128, '--bs', 4, '--epochs', 2],
                best=['sft', '--data', tmp/'asks.jsonl', '--model', tmp/'base', '--seq_len', 128, '--bs', 16, '--epochs', 5, '--lr', 3e-3, '--keep_best'],
                ppo=['ppo', '--prompts', tmp/'ranked.jsonl', '--model', tmp/'base', '--reward', tmp/'rm', '--max_steps', 4,
                     '--n', 16, '--bs', 4, '--max_new_tokens', 6])

@pytest.fixture(scope='module')
def whole(commands, tmp_path_factory):
    "Folder of each run that nobody disturbed"
    tmp = tmp_path_factory.mktemp('whole')
    for name,argv in commands.items(): run(*argv, '--save_every', 4, '--out', tmp/name)
    return tmp

kills = [pytest.param(name, seed) for name in ('clm', 'mlm', 'sft', 'best', 'ppo') for seed in range(10 if os.environ.get('LMFT_SLOW') else 1)]

@pytest.mark.parametrize('name, seed', kills)
def test_killed_and_gone_on(commands, whole, tmp_path, name, seed):
    "SIGKILL at some moment, perhaps within a write; then the same command with --resume"
    rng,out = random.Random(f'{name} {seed}'),tmp_path/'run'
    argv = [str(a) for a in [*commands[name], '--save_every', 4, '--out', out]]
    code = 'import sys; from lmft.cli import main; sys.exit(main(sys.argv[1:]))'
    child = subprocess.Popen([sys.executable, '-c', code, *argv], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    after,begun = rng.randint(1, 6),time.time()
    def steps(): return len(list((out/'checkpoints').glob('step-*'))) and max(int(p.name[5:]) for p in (out/'checkpoints').glob('step-*'))
    while child.poll() is None and steps()<4*after and time.time()<begun+300: time.sleep(.005)
    time.sleep(rng.random()*.05)
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert not (out/'metrics.json').exists(), 'the run ended before it was killed'
    run(*argv, '--resume')
    assert weights(out)==weights(whole/name) and log(out)==log(whole/name) and figures(out)==figures(whole/name)
    assert sorted(p.name for p in out.iterdir())==sorted(p.name for p in (whole/name).iterdir())

def test_resume_of_what_never_began_and_of_what_is_done(commands, whole, tmp_path):
    run(*commands['sft'], '--save_every', 4, '--out', tmp_path/'new', '--resume')
    assert weights(tmp_path/'new')==weights(whole/'sft')
    before = {p: p.stat().st_mtime_ns for p in (tmp_path/'new').rglob('*')}
    run(*commands['sft'], '--save_every', 4, '--out', tmp_path/'new', '--resume')
    assert {p: p.stat().st_mtime_ns for p in (tmp_path/'new').rglob('*')}==before
    (tmp_path/'new'/'checkpoints'/'step-00000004').mkdir(parents=True)             # killed between its last two acts
    run(*commands['sft'], '--save_every', 4, '--out', tmp_path/'new', '--resume')
    assert not (tmp_path/'new'/'checkpoints').exists()

@pytest.fixture
def changed(request):
    "Changes a file until the test is over"
    def change(path, how):
        before = path.read_bytes()
        request.addfinalizer(lambda: path.write_bytes(before))
        path.write_bytes(how(before))
    return change

def test_another_run_is_refused(commands, whole, changed):
    "Other options, other data, another command: each named, and nothing is touched"
    out = whole/'clm'
    before = weights(out)
    assert 'lr' in run(*commands['clm'], '--lr', '0.01', '--out', out, '--resume', code=2)
    assert 'seed' in run(*commands['clm'], '--seed', '3', '--out', out, '--resume', code=2)
    assert 'pretrain' in run(*commands['sft'], '--out', out, '--resume', code=2)
    changed(commands['clm'][2], lambda b: b.replace(b'the', b'that'))
    assert 'fingerprint of data' in run(*commands['clm'], '--out', out, '--resume', code=2)
    assert weights(out)==before

def test_a_folder_named_like_a_size(commands, tmp_path, monkeypatch):
    "A run into `tiny` is no model of that name when it goes on"
    monkeypatch.chdir(tmp_path)
    argv = [*commands['clm'], '--model', 'tiny', '--max_steps', 2, '--out', 'tiny']
    run(*argv)
    run(*argv, '--resume')

def test_another_model_in_the_same_place_is_refused(commands, whole, changed):
    "Another reward model, another chat template"
    rm,base = (commands['ppo'][commands['ppo'].index(k)+1] for k in ('--reward', '--model'))
    changed(rm/'model/model.safetensors', lambda b: b[:-1]+bytes([b[-1]^1]))
    assert 'fingerprint of reward' in run(*commands['ppo'], '--save_every', 4, '--out', whole/'ppo', '--resume', code=2)
    changed(base/'model/chat_template.jinja', lambda b: b+b' ')
    assert 'fingerprint of model' in run(*commands['sft'], '--save_every', 4, '--out', whole/'sft', '--resume', code=2)

def test_other_weights_are_refused_and_the_log_stays(commands, changed, tmp_path):
    argv = [*commands['sft'], '--save_every', 2, '--out', tmp_path/'run']
    with pytest.MonkeyPatch.context() as m:
        m.setenv('LMFT_TRACEBACK', '1')
        m.setattr('lmft.runs._leave', lambda *a: 1/0)                      # ends after training, before its results are there
        with pytest.raises(ZeroDivisionError): run(*argv)
    (tmp_path/'run'/'.model.1.tmp').mkdir()
    rows,base = log(tmp_path/'run'),commands['sft'][commands['sft'].index('--model')+1]
    with pytest.MonkeyPatch.context() as m:
        import lmft.stages.builders
        load = lmft.stages.builders.load_model
        def moved(*args, **kwargs):
            model = load(*args, **kwargs)
            for p in model.parameters(): p.data += 1e-3
            return model
        m.setattr(lmft.stages.builders, 'load_model', moved)
        assert 'starting weights' in run(*argv, '--resume', code=2)
    assert rows and log(tmp_path/'run')==rows
    run(*argv, '--resume')
    assert {p.name for p in (tmp_path/'run').iterdir()}=={'model', 'metrics.json', 'log.jsonl', 'config.json', 'loss.png'}
