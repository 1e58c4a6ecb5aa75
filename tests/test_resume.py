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
                mlm=[*text, '--objective', 'mlm', '--bs', 16, '--max_steps', 30],
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

def test_another_run_is_refused(commands, whole, tmp_path):
    "Other options, other data, another command: each named, and nothing is touched"
    out,text = whole/'clm',tmp_path/'text.jsonl'
    before = weights(out)
    assert 'lr' in run(*commands['clm'], '--lr', '0.01', '--out', out, '--resume', code=2)
    assert 'seed' in run(*commands['clm'], '--seed', '3', '--out', out, '--resume', code=2)
    text.write_text(''.join(json.dumps(dict(text=f'Another text, number {i}.'))+'\n' for i in range(400)))
    other = [text if str(a).endswith('text.jsonl') else a for a in commands['clm']]
    assert 'data' in run(*other, '--out', out, '--resume', code=2)
    assert 'pretrain' in run(*commands['sft'], '--out', out, '--resume', code=2)
    assert weights(out)==before
