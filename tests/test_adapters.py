"Every adapter on every shape: what it changes, what it keeps, what it rejects"
import pytest, torch

import lmft.models.adapters                                                           # registers the methods
from lmft.models.several import add_weighted_adapter, disabled, load_beside, set_adapter
from lmft.data.loaders import lm_dls, make_batch
from lmft.data.examples import text_example
from lmft.data.tokenizers import train_tokenizer
from lmft.core import LmftError, set_seed
from lmft.check.doctor import examine
from lmft.generation import encode_prompt, generate, seq_logps
from lmft.models.loading import stop_ids
from lmft.models.wrapper import HFModel
from lmft.train.learner import lm_learner, token_loss
from lmft.models.parts import base_of, count_params
from lmft.models.loading import load_model, new_model, save_model
from lmft.models.methods import merge_adapter, trainable

texts = ['The cat sat on the mat.', 'The dog wagged its tail.', 'The dog sat.', 'I have a cat. It loves to purr.']
tok = train_tokenizer(texts*3, 400)
methods = 'lora:4', 'seq_adapter:4', 'par_adapter:4', 'prefix:4', 'prompt:4'
causal = ('llama', 'causal'), ('gpt2', 'causal'), ('qwen3', 'causal')
labelled = [(a, h) for a in ('llama', 'gpt2', 'bert') for h in ('sequence_classification', 'token_classification')]
shapes = [*causal, ('bert', 'masked'), *labelled]
each_shape = pytest.mark.parametrize('arch,head', shapes, ids=list(map('-'.join, shapes)))
each_causal = pytest.mark.parametrize('arch,head', causal, ids=list(map('-'.join, causal)))
each_method = pytest.mark.parametrize('method', methods)

def settings(head): return dict(num_labels=3) if head in ('sequence_classification', 'token_classification') else {}

@pytest.fixture(scope='session')
def bases(tmp_path_factory):
    "Folders of base models; a classifier of BERT starts from a masked model, so that its pooler and head are new"
    root = tmp_path_factory.mktemp('bases')
    for i,(arch,head) in enumerate(shapes):
        set_seed(i)
        kind = 'masked' if arch=='bert' else head
        save_model(new_model(tok, arch=arch, head=kind, seq_len=64, initializer_range=.1, **settings(kind)), tok,
                   root/f'{arch}-{head}')
    return root

def fresh(bases, arch, head):
    set_seed(7)
    return load_model(bases/f'{arch}-{head}', head, **settings(head))

def batch(arch, head):
    exs = [text_example(dict(text=t), tok) for t in texts]
    if head=='token_classification': exs = [dict(e, labels=e['input_ids']%3) for e in exs]
    if head=='sequence_classification':
        for i,e in enumerate(exs):
            e['labels'] = torch.full_like(e['input_ids'], -100)
            e['labels'][0 if arch=='bert' else -1] = i%3
    return make_batch([[e] for e in exs], tok.pad_token_id, packed=False, shift=head=='causal')

def stir(model):
    "Move what is trainable, so that an adapter has an effect"
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad: p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel()))*.1)
    return model.eval()

def frozen(model): return {n: p.clone() for n,p in base_of(model).named_parameters() if not p.requires_grad}

@each_shape
@each_method
def test_start_train_save_load_disable(bases, tmp_path, arch, head, method):
    inputs,y = batch(arch, head)
    plain = HFModel(fresh(bases, arch, head)).eval()(inputs).detach()
    model = trainable(fresh(bases, arch, head), method)
    if method[0] in 'ls' or 'par' in method: assert torch.equal(HFModel(model).eval()(inputs), plain)
    before = {n: p.clone() for n,p in model.named_parameters()}
    own = {n for n,p in model.named_parameters() if p.requires_grad}
    wrapped = HFModel(model).train()
    opt,losses = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2),[]
    for _ in range(6):
        losses.append(token_loss(wrapped(inputs), y).mean())
        losses[-1].backward()
        opt.step()
        opt.zero_grad()
    assert {n for n,p in model.named_parameters() if not torch.equal(p, before[n])} == own
    assert min(losses[1:])<losses[0]
    after = HFModel(model).eval()(inputs).detach()
    with disabled(model) as base: assert torch.equal(HFModel(base).eval()(inputs), plain)
    assert {n for n,p in model.named_parameters() if p.requires_grad} == own
    save_model(model, tok, tmp_path/'a')
    set_seed(99)                                                     # a new head or pooler would come out otherwise
    again = load_model(tmp_path/'a', head, **settings(head))
    assert torch.equal(HFModel(again).eval()(inputs), after) and not count_params(again)['trainable_params']
    more = load_model(tmp_path/'a', head, train_adapter=True, **settings(head))
    assert count_params(more) == count_params(model)

@each_causal
@each_method
def test_generation_and_scores(bases, arch, head, method):
    model = stir(trainable(fresh(bases, arch, head), method))
    prompts = ['The', 'I have a cat. It', 'The dog', 'I', 'The cat sat on']
    def by_hand(p):
        ids = torch.tensor([encode_prompt(p, tok)])
        n = ids.shape[1]
        for _ in range(8):
            with torch.no_grad(): new = model(input_ids=ids, use_cache=False).logits[:, -1].argmax(-1)
            if new.item() in stop_ids(model, tok): break
            ids = torch.cat([ids, new[:,None]], 1)
        return tok.decode(ids[0, n:], skip_special_tokens=True)
    assert generate(model, tok, prompts, max_new_tokens=8) == [by_hand(p) for p in prompts]
    assert generate(model, tok, prompts, max_new_tokens=8, bs=2) == [by_hand(p) for p in prompts]
    def logp(p, a):
        ids,n = tok(p+a).input_ids+[tok.eos_token_id],len(tok(p).input_ids)
        with torch.no_grad(): lp = model(input_ids=torch.tensor([ids])).logits[0, -len(ids):].log_softmax(-1)
        return sum(lp[t-1, ids[t]] for t in range(n, len(ids)))
    answers = [' sat on the mat.', ' loves', ' sat.', ' have', ' the mat.']
    truth = torch.stack([logp(p, a) for p,a in zip(prompts, answers)])
    assert torch.allclose(seq_logps(model, tok, prompts, answers), truth, atol=1e-4)

@each_shape
@pytest.mark.parametrize('method', ['prefix:4', 'prompt:4'])
def test_soft_prompts_are_not_packed(bases, arch, head, method):
    model = trainable(fresh(bases, arch, head), method)
    assert any(f.check=='packing' and f.fault for f in examine(model=model, packed=True)) or head=='sequence_classification'
    exs = [text_example(dict(text=t), tok) for t in texts]
    with pytest.raises(LmftError, match='packed=False'): lm_learner(lm_dls(exs, exs, tok, 32), model)

@each_causal
@pytest.mark.parametrize('method', ['lora:4', 'seq_adapter:4', 'par_adapter:4', 'prompt:4', 'prefix:4'])
def test_switch(bases, tmp_path, arch, head, method):
    inputs,_ = batch(arch, head)
    outs = {}
    for i,name in enumerate('ab'):
        model = fresh(bases, arch, head)
        set_seed(i)
        model = stir(trainable(model, method))
        outs[name] = HFModel(model)(inputs)
        save_model(model, tok, tmp_path/name)
    model = load_model(tmp_path/'a').eval()
    load_beside(model, tmp_path/'b', 'b')
    for name in ('default', 'b', 'default'):
        set_adapter(model, name)
        assert torch.equal(HFModel(model)(inputs), outs[dict(default='a').get(name, name)])
        assert not count_params(model)['trainable_params']
    with pytest.raises(LmftError, match='no adapter'): set_adapter(model, 'c')
    more = load_model(tmp_path/'a', train_adapter=True)
    own = count_params(more)['trainable_params']
    load_beside(more, tmp_path/'b', 'b')
    assert count_params(more)['trainable_params'] == own
    set_adapter(more, 'b')
    assert count_params(more)['trainable_params'] == own
    if method!='lora:4':
        with pytest.raises(LmftError, match='cannot be added'): add_weighted_adapter(model, dict(default=1., b=1.))
        with pytest.raises(LmftError, match='cannot be merged'): merge_adapter(model, inputs['input_ids'])

@each_causal
def test_merge(bases, arch, head):
    inputs,_ = batch(arch, head)
    model = stir(trainable(fresh(bases, arch, head), 'lora:4'))
    out = HFModel(model)(inputs)
    merged,report = merge_adapter(model, inputs['input_ids'])
    assert torch.allclose(HFModel(merged)(inputs), out, atol=1e-4) and abs(report['kl'])<1e-5

def test_refusals(bases, tmp_path):
    model = fresh(bases, 'llama', 'causal')
    for bad,why in (('seq_adapter:x', 'whole number'), ('par_adapter:0', 'whole number'), ('prompt:-1', 'whole number'),
                    ('prefix:64', 'positions')):
        with pytest.raises(LmftError, match=why): trainable(model, bad)
    save_model(trainable(model, 'seq_adapter'), tok, tmp_path/'a')
    with pytest.raises(LmftError, match='already'): trainable(load_model(tmp_path/'a'), 'lora')
    other = trainable(fresh(bases, 'gpt2', 'causal'), 'seq_adapter')
    with pytest.raises(LmftError, match='belongs to'): load_beside(other, tmp_path/'a', 'b')
    save_model(trainable(fresh(bases, 'gpt2', 'causal'), 'lora'), tok, tmp_path/'l')
    with pytest.raises(LmftError, match='different peft types'): load_beside(other, tmp_path/'l', 'l')
    (tmp_path/'a'/'adapter_model.safetensors').rename(tmp_path/'a'/'adapter_model.bin')
    with pytest.raises(LmftError, match='safetensors'): load_beside(other, tmp_path/'a', 'b')
