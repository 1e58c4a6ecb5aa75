"What the commands leave loads in plain transformers and peft; and a run depends on its seed and on bs × n_acc alone"
import json, os, random, subprocess, sys

import pytest, torch
from peft import AutoPeftModelForCausalLM, PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from lmft.data.tokenizers import load_tokenizer
from lmft.cli import main
from lmft.models.loading import load_model

steps = 20
words = 'the cat and a dog sat on my mat while ice cream melted slowly in that warm sun of June'.split()
questions = [('Who sat on the mat?', 'The cat.'), ('What melted?', 'Ice cream, and it melted slowly in the sun.'),
             ('Who wagged?', 'The dog.')]

def run(command, out, **opts):
    "Run a command, whatever the state of the process; the folder of its model"
    random.seed(str(out))
    torch.manual_seed(random.getrandbits(32))
    assert main(argv(command, out=out, **opts))==0
    return out/'model'

def argv(command, **opts):
    return [command, *(x for k,v in dict(opts, device='cpu').items() for x in (f'--{k}', str(v)))]

@pytest.fixture(scope='module')
def files(tmp_path_factory):
    "A text of ragged paragraphs, instructions of very different lengths"
    folder,rng = tmp_path_factory.mktemp('data'),random.Random(0)
    def say(n): return ' '.join(rng.choices(words, k=n))
    (folder/'texts').mkdir()
    for i in range(40): (folder/'texts'/f'{i:02}.txt').write_text(say(rng.randint(5, 200)))
    rows = [dict(instruction=q, output=f'{a} {say(rng.randint(1, 40))}') for q,a in questions*40]
    (folder/'ask.jsonl').write_text('\n'.join(map(json.dumps, rows)))
    return folder

small = dict(vocab_size=300, seq_len=64, max_steps=steps, bs=8, optimizer='adamw')       # Muon rounds to bf16, which hides what is exact

@pytest.fixture(scope='module', params=['llama', 'gpt2'])
def base(request, files, tmp_path_factory):
    out = tmp_path_factory.mktemp(request.param)/'base'
    return run('pretrain', out, data=files/'texts', arch=request.param, **small)

@pytest.fixture(scope='module')
def adapter(base, files):
    return run('sft', base.parent.parent/'adapter', data=files/'ask.jsonl', model=base.parent, method='lora:4',
               max_steps=steps, seq_len=64, lr=1e-2)

def logits(model, folder):
    "Logits of a sentence, encoded by the plain tokenizer of the folder"
    tok = AutoTokenizer.from_pretrained(folder)
    assert tok.get_vocab()==load_tokenizer(folder).get_vocab() and tok.pad_token_id not in (None, tok.eos_token_id)
    with torch.no_grad(): return model.eval()(**tok(['the cat sat on my mat'], return_tensors='pt')).logits

def gap(a, b): return (a-b).abs().max().item()

def test_pretrained(base):
    plain,info = AutoModelForCausalLM.from_pretrained(base, output_loading_info=True)
    assert not any(info[k] for k in ('missing_keys', 'unexpected_keys', 'mismatched_keys'))
    assert plain.dtype==torch.float32 and not list(base.glob('*.bin'))
    assert torch.equal(logits(plain, base), logits(load_model(base), base))
    tok = AutoTokenizer.from_pretrained(base)
    chat = tok.apply_chat_template([dict(role='user', content='Hi')], add_generation_prompt=True, tokenize=False)
    assert plain.config.vocab_size==len(tok) and chat=='<|user|> Hi<|end|><|assistant|>'
    first,*_,last = losses(base)
    assert last < first-.5                                              # it has learned something to be saved

def test_adapter(base, adapter):
    by_peft = AutoPeftModelForCausalLM.from_pretrained(adapter)
    on_top = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter)
    ours = logits(load_model(adapter), adapter)
    assert torch.equal(logits(by_peft, adapter), ours) and torch.equal(logits(on_top, adapter), ours)
    assert gap(ours, logits(load_model(base), base)) > .1               # the adapter does something

def test_merged(adapter, tmp_path):
    merged = run('merge', tmp_path/'merged', model=adapter.parent)
    plain = AutoModelForCausalLM.from_pretrained(merged)
    assert not (merged/'adapter_config.json').exists() and not any('lora' in n for n in plain.state_dict())
    assert torch.equal(logits(plain, merged), logits(load_model(merged), merged))
    assert gap(logits(plain, merged), logits(load_model(adapter), adapter)) < 1e-4

def weights(folder):
    name = 'adapter_model' if (folder/'adapter_config.json').exists() else 'model'
    return load_file(folder/f'{name}.safetensors')

def losses(folder): return [json.loads(l)['loss'] for l in (folder.parent/'log.jsonl').read_text().splitlines()]

@pytest.fixture(scope='module')
def trained(files, tmp_path_factory):
    "A run of one of three kinds under other options"
    tmp = tmp_path_factory.mktemp('runs')
    start = run('pretrain', tmp/'start', data=files/'texts', **{**small, 'max_steps': 2}).parent
    kinds = dict(pretrain=('pretrain', dict(small, data=files/'texts')),
                 sft=('sft', dict(data=files/'ask.jsonl', model=start, max_steps=12, seq_len=64, bs=8)))
    kinds['lora'] = 'sft', dict(kinds['sft'][1], method='lora')
    return lambda kind, name, **opts: run(kinds[kind][0], tmp/f'{kind}-{name}', **{**kinds[kind][1], **opts})

@pytest.mark.parametrize('kind', ['pretrain', 'sft', 'lora'])
def test_windows_and_seeds(trained, kind):
    one,four = trained(kind, 'once', bs=8, n_acc=1),trained(kind, 'windows', bs=2, n_acc=4)
    assert len(losses(one)) >= 12 and losses(four)==pytest.approx(losses(one), rel=1e-4)
    assert max(gap(w, weights(four)[n]) for n,w in weights(one).items()) < 1e-4
    again,other = trained(kind, 'again'),trained(kind, 'seed', seed=1)
    assert all(torch.equal(w, weights(again)[n]) for n,w in weights(one).items()) and losses(again)==losses(one)
    assert losses(other)!=losses(one) and any(not torch.equal(w, weights(other)[n]) for n,w in weights(one).items())

def test_same_in_another_process(trained, files, tmp_path):
    "Neither the process nor the order of its sets decides anything"
    here = trained('pretrain', 'here', max_steps=5)
    code = 'import sys; from lmft.cli import main; sys.exit(main(sys.argv[1:]))'
    args = argv('pretrain', out=tmp_path/'there', data=files/'texts', **{**small, 'max_steps': 5})
    env = {**os.environ, 'PYTHONHASHSEED': '7', 'OMP_NUM_THREADS': str(torch.get_num_threads())}
    done = subprocess.run([sys.executable, '-c', code, *args], env=env, capture_output=True, text=True)
    assert done.returncode==0, done.stderr
    assert all(torch.equal(w, weights(tmp_path/'there'/'model')[n]) for n,w in weights(here).items())
