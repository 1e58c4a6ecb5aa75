"The commands as a user runs them: the main job on real text and instructions, and what is rejected."
import io, json, os, re, subprocess, sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest

import yaml
from fastcore.docments import docments
from lmft.cli import main, parse
from lmft.commands import commands
from running import lines, metrics, run

def log(out): return lines(out/'log.jsonl')

@pytest.fixture(scope='module')
def base(tmp_path_factory):
    "A model pretrained on a real book for a hundred steps, which read it between four and five times"
    if 'LMFT_DATA' not in os.environ: pytest.skip('LMFT_DATA is not set (README, "Real data")')
    out = tmp_path_factory.mktemp('base')/'run'
    run('pretrain', '--data', Path(os.environ['LMFT_DATA'])/'text/time_machine.txt', '--model', 'tiny', '--max_steps', 100, '--out', out)
    return out

def test_pretraining_on_a_book(base):
    "100 steps of `tiny` reach below 2.4 bits per byte on the held-out part, and everything that a run leaves is there"
    m,rows = metrics(base),log(base)
    assert m['valid_bpb']<2.4<m['valid_bpb_before'] and m['steps']==100
    assert sorted(p.name for p in base.iterdir())==['config.json', 'log.jsonl', 'loss.png', 'metrics.json', 'model']
    assert {p.suffix for p in (base/'model').iterdir()}<={'.json', '.safetensors', '.jinja', '.md'}           # no pickle
    assert [r['step'] for r in rows if 'valid_loss' not in r]==[s for s in range(10, 101, 10) if s not in {r['step'] for r in rows if 'valid_loss' in r}]
    assert all({'step', 'tokens', 'loss', 'lr', 'tokens_per_s'}<=set(r) for r in rows)
    assert rows[-1]['tokens']==m['tokens'] and rows[-1]['loss']<rows[0]['loss']-1
    assert m['total_params']==pytest.approx(2e6, rel=.25)
    config = json.loads((base/'config.json').read_text())
    assert config['seed']==0 and config['fingerprint']['data'] and config['versions']['torch']

def test_the_main_job(base, data, tmp_path):
    "Continue a sentence, tune on instructions with LoRA, ask, merge, ask again: the merged model answers the same"
    text = run('generate', '--model', base, '--prompt', 'The Time Traveller', '--max_new_tokens', 12)
    assert text.startswith('The Time Traveller') and len(text)>25
    sft = tmp_path/'sft'
    run('sft', '--data', data/'instruct/gsm8k_alpaca_dev.jsonl', '--model', base, '--method', 'lora', '--max_steps', 25, '--seq_len', 256, '--out', sft)
    m = metrics(sft)
    assert m['valid_loss']<m['valid_loss_before']-.5 and m['trainable_params']<.1*m['total_params']
    run('merge', '--model', sft, '--out', tmp_path/'merged')
    assert metrics(tmp_path/'merged')['max_logit_diff']<1e-3
    ask = ['--prompt', 'Tom has 3 apples and buys 4 more. How many apples does he have?', '--max_new_tokens', 16]
    assert run('chat', '--model', sft, *ask)==run('chat', '--model', tmp_path/'merged', *ask)

def test_continued_pretraining_watches_the_old_text(base, data, tmp_path):
    run('pretrain', '--data', data/'text/tinyshakespeare.txt', '--model', base, '--keep', data/'text/time_machine.txt', '--max_steps', 15, '--out', tmp_path/'next')
    m = metrics(tmp_path/'next')
    assert m['valid_bpb']<m['valid_bpb_before'] and m['keep_bpb_after']!=m['keep_bpb_before']

def test_full_tuning_of_conversations(base, data, tmp_path):
    "Multi-turn conversations of a real set, every weight trained"
    run('sft', '--data', data/'chat/sgd_dev.jsonl', '--model', base, '--max_steps', 8, '--bs', 4, '--out', tmp_path/'chat', '--valid', '0.02')
    m = metrics(tmp_path/'chat')
    assert m['trainable_params']==m['total_params'] and m['valid_bpb']<m['valid_bpb_before']

@pytest.mark.parametrize('name', ['alpaca_null_output.json', 'chat_unknown_role.jsonl', 'empty.jsonl', 'missing_fields.jsonl', 'truncated.jsonl', 'wrong_utf8.jsonl'])
def test_broken_files_are_refused(base, data, tmp_path, name):
    err = run('sft', '--data', data/'broken'/name, '--model', base, '--out', tmp_path/'new', code=2)
    assert name in err and not (tmp_path/'new').exists()

def test_bad_records_can_be_skipped(base, data, tmp_path):
    "Good records train, bad ones are counted and listed with their lines"
    out = tmp_path/'new'
    run('sft', '--data', data/'broken/missing_fields.jsonl', '--model', base, '--out', out, '--on_bad', 'skip', '--valid', '0.4', '--max_steps', 1)
    bad = [json.loads(l) for l in (out/'bad_records.jsonl').read_text().splitlines()]
    assert metrics(out)['bad_records']==3 and [b['line'] for b in bad]==[2, 4, 6]

@pytest.mark.parametrize('objective, figures', [('mlm', ['masked_accuracy']), ('mlm+nsp', ['masked_accuracy', 'nsp_accuracy'])])
def test_masked_pretraining_and_its_continuation(data, tmp_path, objective, figures):
    "A masked model from scratch on a book, and trained on; with pairs, too"
    args = ['pretrain', '--data', data/'text/alice.txt', '--objective', objective, '--seq_len', 48, '--bs', 8]
    run(*args, '--max_steps', 30, '--vocab_size', 1000, '--out', tmp_path/'a')
    m = metrics(tmp_path/'a')
    assert m['valid_loss']<m['valid_loss_before'] and all(0<=m[k]<=1 for k in figures) and 'valid_bpb' not in m
    run(*args, '--max_steps', 5, '--model', tmp_path/'a', '--out', tmp_path/'b')
    assert metrics(tmp_path/'b')['valid_loss_before']==pytest.approx(m['valid_loss'], rel=1e-4)
    assert 'both sides' in run('generate', '--model', tmp_path/'a', '--prompt', 'Alice', code=2)
    assert 'keep watches' in run(*args, '--keep', data/'text/alice.txt', '--out', tmp_path/'c', code=2)

@pytest.fixture(scope='module')
def bert(tmp_path_factory, base, data):
    "A masked model pretrained for a few steps on the same book"
    out = tmp_path_factory.mktemp('bert')/'run'
    run('pretrain', '--data', data/'text/time_machine.txt', '--objective', 'mlm', '--seq_len', 64, '--max_steps', 30, '--out', out)
    return out

@pytest.mark.parametrize('kind', ['causal', 'masked'])
@pytest.mark.parametrize('task, name, figures, args', [
    ('classify', 'sentiment/sst2_dev.jsonl', ['accuracy', 'macro_f1'], ['--method', 'gradual']),
    ('classify', 'sentiment/goemotions_group_dev.jsonl', ['accuracy', 'macro_f1'], ['--method', 'lora']),
    ('ner', 'ner/wnut17train.conll', ['entity_f1'], []),
    ('qa', 'qa/xquad_en_dev.json', ['exact_match', 'f1'], ['--method', 'last:1'])])
def test_finetuning_on_real_data(request, data, tmp_path, kind, task, name, figures, args):
    "Each task trains on a real set, from both kinds of model, and leaves its figures and a model that says its labels"
    model = request.getfixturevalue('base' if kind=='causal' else 'bert')
    run('finetune', '--task', task, '--data', data/name, '--model', model, '--max_steps', 6, '--bs', 4, '--valid', '0.02', '--out', tmp_path/'new', *args)
    m = metrics(tmp_path/'new')
    assert all(0<=m[k]<=1 for k in figures) and m['steps']==6 and m['trainable_params']<=m['total_params']
    assert ('lora' in args or args==[]) or m['trainable_params']<m['total_params'] or 'gradual' in args

def test_finetuning_that_writes(base, data, tmp_path):
    "An answer that a causal model writes, and a text in a style"
    run('finetune', '--task', 'qa', '--generative', '--data', data/'qa/xquad_en_dev.json', '--model', base, '--max_steps', 3, '--bs', 2, '--valid', '0.01', '--seq_len', 640, '--out', tmp_path/'qa')
    assert {'exact_match', 'f1', 'valid_bpb'}<=set(metrics(tmp_path/'qa'))
    run('finetune', '--task', 'generate', '--data', data/'text/tinyshakespeare.txt', '--model', base, '--method', 'prefix', '--max_steps', 3, '--out', tmp_path/'style')
    assert metrics(tmp_path/'style')['trainable_params']<metrics(tmp_path/'style')['total_params']/10
    assert run('generate', '--model', tmp_path/'style', '--prompt', 'ROMEO:', '--max_new_tokens', 3).startswith('ROMEO:')

@pytest.mark.parametrize('task, name', [('classify', 'label_out_of_range.jsonl'), ('ner', 'ragged_columns.conll'), ('qa', 'squad_bad_offsets.json')])
def test_broken_labels_are_refused(base, data, tmp_path, task, name):
    assert name in run('finetune', '--task', task, '--data', data/'broken'/name, '--model', base, '--out', tmp_path/'new', code=2)
    assert not (tmp_path/'new').exists()

def test_tasks_refuse_what_is_not_theirs(base, data, tmp_path):
    args = ['finetune', '--model', base, '--out', tmp_path/'new', '--data', data/'sentiment/sst2_dev.jsonl']
    assert 'tokens' in run(*args, '--task', 'ner', code=2)
    assert '--task' in run(*args, '--task', 'summarise', code=2)
    assert 'generative' in run(*args, '--task', 'classify', '--generative', code=2)

@pytest.mark.parametrize('method', ['prefix:4', 'prompt:4', 'seq_adapter:4', 'par_adapter:4'])
def test_sft_with_each_adapter(base, data, tmp_path, method):
    "Tuned, answered from, merged or rejected with the reason"
    run('sft', '--data', data/'instruct/gsm8k_alpaca_dev.jsonl', '--model', base, '--method', method, '--max_steps', 3, '--bs', 2, '--seq_len', 256, '--valid', '0.02', '--out', tmp_path/'a')
    m = metrics(tmp_path/'a')
    assert m['trainable_params']<m['total_params']/10
    assert run('chat', '--model', tmp_path/'a', '--prompt', 'Hi', '--max_new_tokens', 2)
    assert 'merged' in run('merge', '--model', tmp_path/'a', '--out', tmp_path/'b', code=2) and not (tmp_path/'b').exists()

def test_tour(tmp_path):
    "The smallest tour leaves a page that loads nothing from elsewhere and whose charts have a sentence each, and its metrics"
    run('tour', '--size', 'smoke', '--out', tmp_path/'tour')
    page,m = (tmp_path/'tour/report.html').read_text(), metrics(tmp_path/'tour')
    stages = {k.removesuffix('_seconds') for k in m if k.endswith('_seconds')}
    assert {'pretraining', 'tuning', 'entities', 'leaving_out', 'rewarding', 'preferring', 'reinforcing'}<=stages
    assert {'recall', 'lora_answers', 'tasks_loco', 'reward_accuracy', 'dpo_wins', 'ppo_wins'}<=set(m)
    assert not re.search(r'<(script|link|img|iframe)|src=|url\((?!#)|@import', page) and page.count('<h2')==len(stages)+3
    assert all(re.match('#|https://lmft-org.github.io/lmft/', u) for u in re.findall(r'\shref="(.*?)"', page))
    assert page.count('<svg')==page.count('role="img" aria-label="')>10 and 'name="viewport"' in page
    assert 'not empty' in run('tour', '--size', 'smoke', '--out', tmp_path/'tour', code=2)
    assert 'huge' in run('tour', '--size', 'huge', '--out', tmp_path/'other', code=2) and not (tmp_path/'other').exists()

@pytest.mark.parametrize('name', ['huge_line.jsonl', 'huge_line.txt'])
def test_huge_lines_train(data, tmp_path, name):
    "Two million characters on one line; as one record it cannot be split, so another file validates"
    (tmp_path/'valid.txt').write_text('All: Speak, speak.\n')
    run('pretrain', '--data', data/'broken'/name, '--valid', tmp_path/'valid.txt', '--max_steps', 1, '--bs', 1, '--seq_len', 32, '--vocab_size', 300, '--out', tmp_path/'new')
    assert metrics(tmp_path/'new')['steps']==1

@pytest.mark.parametrize('argv, says', [
    (['--lr', '-1'], 'lr is -1'), (['--max_steps', '0'], 'max_steps is 0'), (['--n_acc', 'two'], 'n_acc'), (['--warmup', '-3'], 'warmup is -3'),
    (['--device', 'tpu'], 'tpu'), (['--precision', 'fp8'], 'fp8'), (['--precision', 'fp16', '--device', 'cpu'], 'fp16'), (['--resume', '--overwrite'], '--resume'),
    (['--save_every', '0'], 'save_every is 0'), (['--objective', 'mlm+nsp', '--arch', 'llama'], 'arch is'), (['--objective', 'rtd'], 'rtd'), (['--valid', '0'], 'valid is 0'), (['--vocab_size', '7'], 'vocab_size'),
    (['--seq_len', '1'], 'seq_len'), (['--log', 'tensorboard'], 'tensorboard'), (['--on_bad', 'ignore'], 'ignore'), (['--model', './nowhere'], 'nowhere'),
    (['--max_step', '5'], '--max_step'), (['--arch', 'bert'], 'bert')])
def test_bad_options_are_refused(tmp_path, argv, says):
    (tmp_path/'text.txt').write_text('One line.\n\n'*4000)
    assert says in run('pretrain', '--data', tmp_path/'text.txt', '--out', tmp_path/'new', *argv, code=2)
    assert not (tmp_path/'new').exists()

def test_a_full_folder_is_refused_and_can_be_overwritten(tmp_path):
    (tmp_path/'text.jsonl').write_text(''.join(json.dumps(dict(text=f'The {a} sees the {b}.'))+'\n' for a in 'cat dog owl fox'.split() for b in 'sun moon sea'.split()))
    out = tmp_path/'run'
    args = ['pretrain', '--data', tmp_path/'text.jsonl', '--vocab_size', 300, '--max_steps', 2, '--seq_len', 16, '--valid', .2, '--out', out]
    run(*args)
    (out/'notes.txt').write_text('mine')
    before = (out/'metrics.json').read_text()
    assert 'not empty' in run(*args, code=2) and (out/'metrics.json').read_text()==before
    run(*args, '--max_steps', 3, '--overwrite')
    assert metrics(out)['steps']==3 and (out/'notes.txt').read_text()=='mine'            # what is not ours stays
    (tmp_path/'file').write_text('')
    assert 'must be a folder' in run(*args[:-1], tmp_path/'file', code=2)

def test_the_process(tmp_path):
    "As a program in a pipe: no progress, no traceback, the exit code; help is quick and lists every option"
    def lmft(*argv, **kwargs): return subprocess.run([Path(sys.executable).with_name('lmft'), *map(str, argv)], capture_output=True, text=True, **kwargs)
    p = lmft('pretrain', '--data', tmp_path/'none.txt', '--out', tmp_path/'new')
    assert p.returncode==2 and p.stderr.startswith('lmft: ') and 'none.txt' in p.stderr and p.stderr.count('\n')==1 and not p.stdout
    (tmp_path/'text.txt').write_text('\n\n'.join(f'Line {i} says {i*i}.' for i in range(4000)))
    p = lmft('pretrain', '--data', tmp_path/'text.txt', '--out', tmp_path/'new', '--max_steps', 2, '--vocab_size', 300, '--seq_len', 32)
    assert (p.returncode, p.stderr)==(0, '') and p.stdout.startswith('lmft pretrain: ') and p.stdout.count('\n')==1
    assert 'valid_bpb' in p.stdout and str(tmp_path/'new/metrics.json') in p.stdout
    p = lmft('generate', '--model', tmp_path/'new', '--max_new_tokens', 3, input='Line 7')
    assert p.returncode==0 and p.stdout.startswith('Line 7') and not p.stderr
    p = lmft('loco', '--help')
    assert p.returncode==0 and all(f'--{o}' in p.stdout for o in docments(commands['loco']) if o!='return')
    assert lmft('--version').stdout.startswith('lmft ')

def test_help_and_mistakes_load_no_torch(tmp_path):
    "What is known from the command line alone is said before anything heavy is imported"
    code = "import sys; from lmft.cli import main; main(sys.argv[1:]); print([m for m in ('torch', 'transformers', 'fastai', 'pandas', 'datasets') if m in sys.modules])"
    for argv in (['--help'], *([c, '--help'] for c in commands), ['sft', '--data'], ['stf'], ['merge', '--print_config'], ['--version']):
        p = subprocess.run([sys.executable, '-c', code, *argv], capture_output=True, text=True)
        assert p.stdout.splitlines()[-1]=='[]', (argv, p.stdout, p.stderr)

@pytest.mark.parametrize('name', commands)
def test_every_command(name):
    "Help lists each option, a plan of all defaults can be printed and read again, and each option has its line of help"
    f = commands[name]
    assert f.__doc__ and '\n' not in f.__doc__
    out = run(name, '--print_config')
    plan = yaml.safe_load(out)
    assert plan.pop('command')==name and plan
    if 'o' not in docments(f): assert set(plan)==set(docments(f))-{'return'} and all(docments(f)[k] for k in plan)
    text = run(name, '--help')
    assert all(f'--{k}' in text for k in plan)

def test_options_in_a_file(tmp_path):
    "Any option in YAML; the command line wins; what is no option, another command, or no YAML is rejected"
    plan = tmp_path/'plan.yaml'
    plan.write_text('tasks: [a.json, b.json]\nmodel: m\nshots: 3\nlr: 1e-4\nchat: true\noverwrite: false\nseq_len: null\n')
    name,o = parse(['loco', '--config', str(plan), '--out', 'o', '--shots', '5'])
    assert (name, o)==('loco', dict(tasks=['a.json', 'b.json'], model='m', shots=5, lr=1e-4, chat=True, overwrite=False, out='o'))
    for text,says in [('shot: 3', "plan.yaml:1: 'shot' is no option of lmft loco; did you mean shots?"), ('command: merge', 'is for lmft merge'), ('- a\n- b', 'no options'),
                      ('a: [', 'no YAML'), ('bs: many', 'bs'), ('device: tpu', 'tpu'), ('shots: 1.5', 'no whole number'), ('\x00', 'YAML')]:
        plan.write_text(text)
        assert says in (err := run('loco', '--tasks', 'a', '--model', 'm', '--out', 'o', '--config', plan, code=2)) and plan.name in err, err
    assert 'none.yaml' in run('merge', '--config', tmp_path/'none.yaml', code=2)

def test_a_run_again_from_its_folder(tmp_path):
    "The config.json that a run leaves gives the same run, but for what the command line says"
    (tmp_path/'text.txt').write_text('\n\n'.join(f'Line {i} says {i*i}.' for i in range(4000)))
    run('pretrain', '--data', tmp_path/'text.txt', '--out', tmp_path/'a', '--max_steps', 2, '--vocab_size', 300, '--seq_len', 32)
    run('pretrain', '--config', tmp_path/'a/config.json', '--out', tmp_path/'b')
    assert (tmp_path/'a/model/model.safetensors').read_bytes()==(tmp_path/'b/model/model.safetensors').read_bytes()
    assert 'pretrain' in run('sft', '--config', tmp_path/'a/config.json', '--out', tmp_path/'c', code=2)

def test_completion(tmp_path):
    "A script for the shell knows the commands and their options"
    env = dict(os.environ, HOME=str(tmp_path), SHELL='/bin/bash')
    p = subprocess.run([sys.executable, '-m', 'lmft.cli', '--install-completion', '--shell', 'bash'], capture_output=True, text=True, env=env)
    scripts = [f.read_text() for f in tmp_path.rglob('*') if f.is_file()]
    assert p.returncode==0 and any('leave' not in s and '--max_new_tokens' in s and 'collect' in s for s in scripts), p.stderr

def test_ctrl_c_says_how_it_goes_on(monkeypatch, capsys):
    "Also where nothing was said on purpose"
    def stop(*args, **kwargs): raise KeyboardInterrupt
    for name,says in (('collect', '--resume goes on'), ('merge', 'give the command again')):
        monkeypatch.setattr('lmft.commands.checked', stop)
        argv = dict(collect=['--prompts', 'p'], merge=[])[name]
        assert main([name, *argv, '--model', 'm', '--out', 'o'])==130
        assert says in capsys.readouterr().err


mistakes = dict(
    command=(['pretain', '--data', '{}/fine.csv'], ["'pretain' is no command; did you mean pretrain?"]),
    option=(['sft', '--data', '{}/fine.csv', '--modle', 'm', '--out', '{}/new'], ['--modle', 'did you mean --model?', 'lmft sft --help']),
    column=(['finetune', '--task', 'classify', '--data', '{}/column.csv', '--model', '{}/full', '--out', '{}/new'], ['column.csv', 'reveiw', 'text']),
    no_file=(['doctor', '--data', '{}/fime.csv'], ['fime.csv', 'no such file']),
    no_header=(['doctor', '--data', '{}/headless.csv'], ['headless.csv', 'text']),
    no_model=(['generate', '--model', 'mymodel', '--prompt', 'x'], ['mymodel: there is no such folder', 'HF_HUB_OFFLINE']),
    empty_model=(['generate', '--model', '{}/full', '--prompt', 'x'], ['full', 'tokenizer']),
    task=(['predict', '--task', 'clasify', '--data', '{}/fine.csv', '--model', 'm', '--out', '{}/new.csv'], ['clasify', 'Did you mean "classify"?']),
    method=(['estimate', '--model', 'tiny', '--method', 'loar'], ['loar', 'lora']),
    out=(['world', '--out', '{}/full'], ['full', 'not empty', '--overwrite']),
    kind=(['estimate', '--model', 'tiny', '--bs', 'eight'], ['--bs', "'eight' is no whole number"]),
    choice=(['estimate', '--model', 'tiny', '--device', 'gpu'], ['gpu', 'cuda']),
    out_of_range=(['world', '--n_words', '-5', '--out', '{}/new'], ['n_words is -5', 'above 0']),
    no_value=(['merge', '--model', '--out', '{}/new'], ['--model needs a value']),
    stray=(['merge', 'adapter', '--model', 'm', '--out', '{}/new'], ['adapter', 'Options begin with --']))

@pytest.mark.parametrize('name', mistakes)
def test_a_beginners_mistake(name, tmp_path):
    "One line that names the mistake and what would be right; nothing is written, nobody waits for a hub"
    (tmp_path/'full').mkdir()
    (tmp_path/'full/mine.txt').write_text('mine')
    for f,text in dict(fine='text,label\nGood film,pos\n', column='reveiw,label\nGood film,pos\nBad film,neg\n', headless='Good film,pos\nBad film,neg\n').items():
        (tmp_path/f'{f}.csv').write_text(text)
    argv,says = mistakes[name]
    err = run(*(a.replace('{}', str(tmp_path)) for a in argv), code=2)
    assert all(s in err for s in says), err
    assert {p.name for p in tmp_path.rglob('*')}=={'full', 'mine.txt', 'fine.csv', 'column.csv', 'headless.csv'}

def test_warnings_of_others_are_not_ours(capsys):
    "Also in a checkout called lmft, whose packages lie below a folder of this name; and the filters of warnings outlive a command"
    import warnings
    from lmft import cli, core
    seen = []
    for file in ('/home/me/lmft/.venv/lib/python3.11/site-packages/torch/serialization.py', str(Path(core.__file__).parent/'data/files.py')):
        cli._warned(lambda *args: seen.append(args[2]), f'said by {file}', UserWarning, file, 1)
    assert len(seen)==1 and 'torch' in seen[0] and capsys.readouterr().err.count('lmft: said by')==1
    before,show = [*warnings.filters],warnings.showwarning
    with redirect_stdout(io.StringIO()): main(['--version'])
    assert warnings.filters[-len(before):]==before and warnings.showwarning is show

def test_a_run_that_got_worse_says_so(capsys):
    "Unless it ended with the best weights; the loss before the training counts as well"
    from types import SimpleNamespace as S
    from lmft import core, runs
    core.said.clear()
    learn = S(stage=S(name='clm'), step_log=S(history=[dict(step=40, loss=2., valid_loss=2.3), dict(step=80, loss=1., valid_loss=2.6)]))
    runs._say_result(learn, {}, True)
    assert not capsys.readouterr().err
    runs._say_result(learn, dict(valid_loss_before=9.), False)
    assert 'lowest at step 40 (2.3)' in capsys.readouterr().err
    runs._say_result(learn, dict(valid_loss_before=2.), False)
    assert 'lower before the training (2)' in capsys.readouterr().err
