"The recipes: their options are known, their comments are true, and each runs on a tiny model of the same architecture"
import json, re, shlex

import pytest, yaml
from fastcore.test import test_eq as eq
from transformers import AutoConfig

import lmft.all as lm
from chores import root
from lmft.cli import main, parse
from lmft.data.tokenizers import train_tokenizer
from lmft.models.loading import heads, save_model
from lmft.stages.bases import bases
from lmft.tour import _sizes as tour_sizes
from running import run

recipes = sorted((root/'recipes').glob('*.yaml'))
each = pytest.mark.parametrize('path', recipes, ids=lambda p: p.stem)
shapes = dict(zip(('bert-classify', 'gpt2-124m', 'modernbert-ner', 'qwen2.5-grpo', 'smollm2-dpo', 'smollm2-lora-sft'),
                  ('bert-base', 'gpt2-124m', 'modernbert-base', 'qwen2.5-0.5b', 'smollm2-360m', 'smollm2-360m')))
weights = {'bert-base': 110e6, 'gpt2-124m': 124e6, 'modernbert-base': 149e6, 'qwen2.5-0.5b': 494e6, 'smollm2-360m': 362e6}
words = 'the cat sat on a mat and the dog in Rome ate its fish while Anna slept'.split()
asks = [(f'What is {a} plus {b}?', str(a+b)) for a in range(6) for b in range(5)]

def settings(path): return yaml.safe_load(path.read_text(encoding='utf-8'))
def shape(path): return root/'recipes/shapes'/shapes[path.stem]

def narrow(folder):
    "The configuration of a shape with two narrow layers"
    o = json.loads((folder/'config.json').read_text())
    small = dict(hidden_size=48, n_embd=48, num_hidden_layers=2, n_layer=2, num_attention_heads=4, n_head=4, num_key_value_heads=2, intermediate_size=96)
    o |= {k: v for k,v in small.items() if k in o}
    return AutoConfig.for_model(o.pop('model_type'), **{k: v for k,v in o.items() if not k.endswith('_token_id')})

@pytest.fixture(scope='module')
def place(tmp_path_factory):
    "Data for each command, and tiny models of each architecture"
    top,tok = tmp_path_factory.mktemp('recipes'),train_tokenizer([f'{q} {a} {" ".join(words)}' for q,a in asks], 400)
    rows = dict(pretrain=[dict(text=' '.join(words[i%9:])+f' {i}.') for i in range(400)], sft=[dict(prompt=q, completion=' '+a) for q,a in asks],
                dpo=[dict(prompt=q, chosen=' '+a, rejected=' no') for q,a in asks],
                ppo=[dict(prompt=q, answer=a) for q,a in asks],
                classify=[dict(text=f'{" ".join(words[:5])} {i}', label=('good', 'bad')[i%2]) for i in range(24)],
                ner=[dict(tokens=words[:10]+[str(i)], tags=['O']*9+['B-LOC', 'O']) for i in range(24)])
    for k,rs in rows.items(): (top/f'{k}.jsonl').write_text('\n'.join(map(json.dumps, rs)))
    for name in {*shapes.values()}:
        config = narrow(root/'recipes/shapes'/name)
        for k in ('pad_token_id', 'bos_token_id', 'eos_token_id', 'cls_token_id', 'sep_token_id'): setattr(config, k, getattr(tok, k))
        if name=='gpt2-124m':
            config.save_pretrained(top/name)                                       # a shape without weights, as in the recipe
            continue
        config.vocab_size = len(tok)
        lm.set_seed(0)
        save_model(heads['masked' if 'bert' in name else 'causal'].from_config(config), tok, top/name)
    return top

def kind(o): return o.get('task', o['command'])

def little(path, place, out):
    "The command line of a recipe on a tiny model and a little data"
    o = settings(path)
    data = '--prompts' if o['command']=='ppo' else '--data'
    small = dict(model=place/shapes[path.stem], bs=2, n_acc=2, max_steps=2, out=out, precision='fp32', device='cpu')
    more = dict(max_new_tokens=4, n=4, group=2) if o['command']=='ppo' else dict(seq_len=64, valid=.2)
    more |= dict(vocab_size=300, eval_every=1) if o['command']=='pretrain' else {}
    return [o['command'], '--config', path, data, place/f'{kind(o)}.jsonl', *(str(x) for k,v in (small|more).items() for x in (f'--{k}', v))]

def test_every_shape_has_its_recipe():
    eq(sorted(shapes), [p.stem for p in recipes])
    eq(sorted({*shapes.values()}), sorted(p.name for p in (root/'recipes/shapes').iterdir()))

@each
def test_options_are_known_and_stay(path, place, tmp_path):
    "All that the recipe says arrives; a number or word in its place is what the command takes"
    o = settings(path)
    argv = [str(a) for a in little(path, place, tmp_path/'out')]
    _,got = parse([*argv[:5]])
    for k,v in o.items():
        if k!='command': eq(got[k], tuple(v) if k=='betas' else v)
    assert parse(argv)[1]['out']==str(tmp_path/'out')                               # the command line wins

@each
def test_dry_run(path, place, tmp_path):
    run(*little(path, place, tmp_path/'out'))
    m,o = json.loads((tmp_path/'out/metrics.json').read_text()),settings(path)
    assert m['steps']==(4 if o['command']=='ppo' else 2) and m['trainable_params']<=m['total_params'] and (o.get('method')=='lora')==(m['trainable_params']<m['total_params'])
    config = json.loads((tmp_path/'out/config.json').read_text())
    for k in ('lr', 'betas', 'beta', 'r', 'alpha', 'warmup', 'schedule', 'kl_estimator', 'targets', 'wd'):
        if k in o: eq(config[k], o[k])

@each
def test_doctor(path, place, capsys):
    "Without a fault; a warning may speak of the little data"
    o = settings(path)
    if o['command']=='ppo':
        assert 'doctor knows nothing of ppo' in run('doctor', '--config', path, '--data', place/'ppo.jsonl', code=2)
        return
    argv = 'doctor', '--config', path, '--data', place/f'{kind(o)}.jsonl', '--model', place/shapes[path.stem], '--seq_len', 64, '--valid', .2, '--precision', 'fp32', '--device', 'cpu'
    assert main([*map(str, argv)]) in (0, 1)
    said = capsys.readouterr().out
    assert 'fault:' not in said, said

@each
def test_memory_of_the_comment(path, monkeypatch):
    "What the comment says is what its command says; of 60 batches of a step two say as much"
    monkeypatch.setattr(lm, 'memory_at_hand', lambda device: 2**50)
    monkeypatch.setattr('lmft.check.estimate._timed', lambda hf, peak, seconds, settings: seconds)        # minutes, and not asked for here
    monkeypatch.chdir(root)
    said,command = re.search(r'Memory: ([\d.]+) GiB by `lmft (.*?)`', path.read_text()).groups()
    few = '1' if settings(path).get('method')=='lora' else '2'                           # the gradients of LoRA are small
    argv = shlex.split(command)+(['--n_acc', few] if 'n_acc' in settings(path) and '--config' in command else [])
    out = run(*argv)
    assert float(re.search(r'peak_memory: ([\d,]+)', out)[1].replace(',', ''))/1024==pytest.approx(float(said), rel=.02)
    assert int(re.search(r'total_params: (\d+)', out)[1])==pytest.approx(weights[shapes[path.stem]], rel=.03)       # an adapter adds some

@each
def test_comments(path):
    "Each value says why, and the recipe says what was not run"
    text = path.read_text()
    assert 'Meant for' in text and 'Not run:' in text and f'--config recipes/{path.name}' in text
    bare = [k for k,v in settings(path).items() if k not in ('command', 'task', 'method', 'model', 'out', 'precision', 'loss')
            and not re.search(rf'^{k}: .*#|^method: .*all values', text, re.M)]
    assert not bare

@pytest.mark.parametrize('text, says', [
    ('bs: 8\nlearning_rate: 1\n', "x.yaml:2: 'learning_rate' is no option of lmft sft"), ('epoch: 2\n', "'epoch' is no option of lmft sft; did you mean epochs?"),
    ('lr: 1\nbs: 8\nlr: 2\n', "x.yaml:3: 'lr' stands in line 1, too"), ('bs: [1\nlr: 2\n', 'x.yaml:2: is no YAML'),
    ('lr: 1\nbs: many\n', 'x.yaml:2'), ('command: dpo\n', 'is for lmft dpo, not for lmft sft'), ('lr: 1\nbs: 0\n', 'bs is 0')])
def test_mistakes_in_a_file_name_the_line(tmp_path, text, says):
    (tmp_path/'x.yaml').write_text(text)
    assert says in run('sft', '--config', tmp_path/'x.yaml', '--data', 'a.jsonl', '--model', 'm', '--out', tmp_path/'o', code=2)

def test_estimate_and_doctor_take_the_file_of_a_training(tmp_path):
    file = tmp_path/'x.yaml'
    file.write_text('command: finetune\ntask: qa\ngenerative: true\nbs: 3\nepochs: 4\n')
    eq(parse(['estimate', '--config', str(file), '--model', 'm'])[1], dict(model='m', bs=3, stage='qa_generative'))
    for text,says in (('command: dpo\n', 'estimate knows nothing of dpo'), ('command: merge\n', 'is for lmft merge, not for lmft estimate'),
                      ('command: sft\nepoch: 1\n', "'epoch' is no option of lmft sft")):
        file.write_text(text)
        assert says in run('estimate', '--config', file, '--model', 'm', code=2)

def test_the_tour_of_a_gpu_is_set_up():
    "Its settings have the names of the tour on a CPU, and its models fit into 16 GB"
    eq([sorted(v) for v in tour_sizes.values()], [sorted(tour_sizes['cpu'])]*3)
    for kind in ('causal', 'masked'):
        r = bases[kind]._replace(**tour_sizes['gpu'][kind])
        assert lm.estimate(r.size, arch=r.arch, bs=r.bs, seq_len=r.seq_len, precision='bf16', device='cpu')['peak']<12*2**30
