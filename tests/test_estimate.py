"What a run takes, told before and measured after, and the command that tells it"
import pytest
import lmft.models.adapters
from lmft.core import LmftError
from lmft.check.estimate import estimate, measure, report, suggest
from lmft.stages.defaults import stage_defaults
from lmft.stages.table import stages
from running import run

small = dict(model='small', device='cpu', steps=2, seq_len=128)
runs = [small | o for o in (dict(arch='llama'), dict(arch='gpt2', method='lora', n_acc=2), dict(arch='bert', bs=16),
                            dict(arch='llama', vocab_size=32000, bs=4),
                            dict(arch='qwen3', method='last:2', seq_len=256),
                            dict(arch='llama', gradient_checkpointing=True, seq_len=256))]

@pytest.fixture(scope='module')
def pairs(): return [*zip([estimate(**r) for r in runs], measure(runs))]

@pytest.mark.parametrize('i', range(len(runs)))
def test_peak(pairs, i):
    told,found = pairs[i]
    assert told['peak']>100*2**20 and .85<told['peak']/found['peak']<1.15

@pytest.mark.parametrize('i', range(len(runs)))
def test_time(pairs, i):
    told,found = pairs[i]
    assert 1/8<told['seconds_per_step']/found['seconds_per_step']<8               # others may use the machine, too

def test_failed_run():
    with pytest.raises(LmftError, match='a run failed'): measure([dict(small, method='nonsense')])

def figures(text): return dict(l.split(': ', 1) for l in text.splitlines())

def test_command():
    said = figures(run('estimate', '--model', 'tiny', '--bs', 2, '--seq_len', 32, '--n_acc', 3, '--tokens', 1000))
    told = estimate('tiny', bs=2, seq_len=32, n_acc=3, optimizer='muon')                         # the default of a new model
    assert int(said['total_params'])==told['total_params'] and said['tokens_per_step']=='192' and said['steps']=='6'
    assert said['peak_memory'].startswith(f"{told['peak']/2**20:,.0f} MiB") and 'memory_at_hand' in said

def test_defaults_are_those_of_the_stage():
    "Method, batch, context length and head come from the table of stages"
    for stage in ('clm', 'mlm', 'classify', 'sft'):
        own,arch = stage_defaults[stage],'bert' if stage=='mlm' else 'llama'
        said = figures(run('estimate', '--model', 'tiny', '--stage', stage, '--arch', arch))
        told = estimate('tiny', method=own.method, bs=own.bs, seq_len=own.seq_len, head=stages[stage].head, arch=arch)
        assert int(said['tokens_per_step'])==own.bs*own.seq_len and int(said['total_params'])==told['total_params']

def test_what_would_fit():
    "Blocks that are computed again come after smaller batches and before lora, where the model can do it"
    assert suggest(estimate('tiny', bs=2)['peak']-1, 'tiny', bs=2)[0]==dict(bs=1, n_acc=2)
    one = estimate('tiny', bs=1)['peak']
    change,less = suggest(one-1, 'tiny', bs=1)
    assert change==dict(gradient_checkpointing=True) and less['peak']<one
    assert 'method' in suggest(less['peak']-1, 'tiny', bs=1)[0]
    assert 'prefix' in run('estimate', '--model', 'tiny', '--method', 'prefix', '--gradient_checkpointing', code=2)
    assert suggest(estimate('tiny', bs=5)['peak']-1, 'tiny', bs=5)[0]==dict(bs=1, n_acc=5)          # five rows a step, as before

def test_a_run_that_does_not_fit(monkeypatch, capsys):
    "None of its steps is run; lora, which muon cannot train, is tried with AdamW"
    least = dict(bs=1, gradient_checkpointing=True)
    limit = (estimate('tiny', **least, optimizer='muon')['peak']+estimate('tiny', **least, method='lora')['peak'])//2
    monkeypatch.setattr('lmft.check.estimate.memory_at_hand', lambda device='auto': limit)
    monkeypatch.setattr('lmft.check.estimate.measure', lambda runs: pytest.fail('it was run'))
    found = estimate('tiny', bs=2, optimizer='muon', timed=True)
    assert 'no step was timed' in capsys.readouterr().err and found['seconds_per_step']>0
    assert '--optimizer adamw' in report(found, limit, model='tiny', bs=2, optimizer='muon')[-1]

@pytest.mark.parametrize('argv,says', [
    (['--bs', 8], '--model'), (['--model', 'tiny', '--bs', 0], 'bs is 0'), (['--model', 'tiny', '--seq', 8], '--seq'),
    (['--model', 'tiny', '--method', 'nonsense'], 'nonsense'), (['--model', './nowhere'], 'no such folder'),
    (['--model', 'tiny', '--labelled', 2], 'labelled is 2'), (['--model', 'tiny', '--stage', 'tail'], '"tail" for --stage'),
    (['--model', 'tiny', '--arch', 't9'], '"t9" for --arch')])
def test_refused(argv, says): assert says in run('estimate', *argv, code=2)
