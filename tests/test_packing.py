"Packed documents, selected positions and predictions against plain forward passes of 🤗 models, one document at a time"
import pytest, torch
import torch.nn.functional as F

from lmft.data.loaders import LMDL, lm_dls, make_batch, pack
from lmft.data.examples import text_example
from lmft.data.tokenizers import train_tokenizer
from lmft.core import set_seed
from lmft.models.wrapper import HFModel
from lmft.train.learner import lm_learner
from lmft.models.loading import new_model
from lmft.models.methods import trainable

texts = ['The cat sat on the mat.', 'Dogs.', 'I like ice cream, and the cat likes it too.',
         'I have a cat. It loves to purr.', 'The dog wagged its tail.', 'Ice cream is cold.',
         'A much longer story about a dog, a cat and the ice cream that both of them stole.']
tok = train_tokenizer(texts, 300)
rows = [[0, 1, 2], [3, 4], [6], [5]]            # rows of different fill: all but one have a tail of padding
kinds = [('llama', 'causal'), ('qwen3', 'causal'), ('gpt2', 'causal'), ('bert', 'masked'),
         *[(a, 'token_classification') for a in ('llama', 'qwen3', 'gpt2', 'bert')]]
causal = [a for a,h in kinds if h=='causal']

def examples(head='causal'):
    "The texts, two thirds of their tokens trained; for `tokens` with one of three labels"
    g,exs = torch.Generator().manual_seed(0),[text_example(dict(text=t), tok) for t in texts]
    for e in exs:
        labels = torch.randint(3, e['labels'].shape, generator=g) if head=='token_classification' else e['labels']
        e['labels'] = labels.where(torch.rand(labels.shape, generator=g)<2/3, -100)
    return exs

def tiny(arch, head='causal', attn='sdpa', lora=False, train=False):
    set_seed(0)
    depth = dict(n_layer=2) if arch=='gpt2' else dict(num_hidden_layers=2)
    more = dict(num_labels=3, classifier_dropout=0.) if head=='token_classification' else {}
    hf = new_model(tok, arch=arch, head=head, attn_implementation=attn, **depth, **more)
    for n,p in hf.named_parameters():                      # fresh models are too meek: let attention matter
        if p.ndim>1: torch.nn.init.normal_(p, std=.1)
    if lora:
        hf = trainable(hf, 'lora')
        for n,p in hf.named_parameters():
            if 'lora_B' in n: torch.nn.init.normal_(p, std=.1)
    assert hf.config._attn_implementation==attn
    return hf.train(train)

def by_hand(hf, exs, shift):
    "Logits and targets of the trained tokens of each document, each through the model alone"
    logits = [hf(input_ids=e['input_ids'][None]).logits[0] for e in exs]
    pairs = [(l[:-1], e['labels'][1:]) if shift else (l, e['labels']) for l,e in zip(logits, exs)]
    return torch.cat([l[y!=-100] for l,y in pairs]), torch.cat([y[y!=-100] for _,y in pairs])

def in_rows(exs): return [[exs[i] for i in r] for r in rows], [exs[i] for r in rows for i in r]
def gap(a, b): return (a-b).abs().max().item()

@pytest.mark.parametrize('train', [False, True], ids=['eval', 'train'])
@pytest.mark.parametrize('attn', ['sdpa', 'eager'])
@pytest.mark.parametrize('arch,head', kinds)
def test_packed_is_separate(arch, head, attn, train):
    hf,(packed,alone),shift = tiny(arch, head, attn, train=train),in_rows(examples(head)),head=='causal'
    inputs,targets = make_batch(packed, tok.pad_token_id, shift=shift)
    pred = HFModel(hf)(inputs)
    logits,y = by_hand(hf, alone, shift)
    assert pred.shape==logits.shape and torch.equal(targets, y)
    assert gap(pred, logits) < 1e-4
    assert gap(make_batch(packed, 7, shift=shift)[0]['input_ids'], inputs['input_ids']) > 0     # the padding is there,
    assert gap(HFModel(hf)(make_batch(packed, 7, shift=shift)[0]), pred) < 1e-4                 # and nobody looks at it

@pytest.mark.parametrize('attn', ['sdpa', 'eager'])
@pytest.mark.parametrize('arch', ['llama', 'qwen3', 'gpt2', 'bert'])
def test_packed_gradient(arch, attn):
    "The gradient of a packed batch is the sum of the gradients of its documents"
    head = 'masked' if arch=='bert' else 'causal'
    hf,(packed,alone) = tiny(arch, head, attn, train=True),in_rows(examples(head))
    def grads():
        g = {n: p.grad.clone() for n,p in hf.named_parameters() if p.grad is not None}
        hf.zero_grad()
        return g
    inputs,targets = make_batch(packed, tok.pad_token_id, shift=head=='causal')
    F.cross_entropy(HFModel(hf)(inputs), targets, reduction='sum').backward()
    together = grads()
    for e in alone: F.cross_entropy(*by_hand(hf, [e], head=='causal'), reduction='sum').backward()
    one_by_one = grads()
    assert together.keys()==one_by_one.keys()
    norm = torch.cat([g.flatten() for g in one_by_one.values()]).norm()
    assert sum((together[n]-g).norm()**2 for n,g in one_by_one.items())**.5/norm < 1e-5

@pytest.mark.parametrize('attn', ['sdpa', 'eager'])
@pytest.mark.parametrize('arch', causal)
def test_naive_call_leaks(arch, attn):
    "Negative control: with a mask of ones the documents of a row see each other, so the tests above can fail"
    hf,(packed,alone) = tiny(arch, attn=attn),in_rows(examples())
    inputs,_ = make_batch(packed, tok.pad_token_id)
    with torch.no_grad(): logits,_ = by_hand(hf, alone, True)
    ones = torch.ones_like(inputs['input_ids'])
    naive = hf(inputs['input_ids'], position_ids=inputs['position_ids'], attention_mask=ones, use_cache=False)
    assert gap(naive.logits[inputs['loss_mask']], logits) > 1e-2

def test_naive_call_leaks_in_bert():
    hf,(packed,alone) = tiny('bert', 'masked'),in_rows(examples())
    inputs,_ = make_batch(packed, tok.pad_token_id, shift=False)
    naive = hf(inputs['input_ids'], position_ids=inputs['position_ids']).logits[inputs['loss_mask']]
    assert gap(naive, by_hand(hf, alone, False)[0]) > 1e-2

@pytest.mark.parametrize('left', [False, True], ids=['right', 'left'])
@pytest.mark.parametrize('lora', [False, True], ids=['plain', 'lora'])
@pytest.mark.parametrize('arch,head', kinds)
def test_selected_is_full(arch, head, lora, left):
    "The kept positions have the logits that the model gives without selection, and only they come out of the head"
    hf,exs,shift = tiny(arch, head, lora=lora),examples(head),head=='causal'
    inputs,targets = make_batch([[e] for e in exs], tok.pad_token_id, packed=False, shift=shift, left=left)
    pred = HFModel(hf)(inputs)
    full = hf(**{k: inputs[k] for k in ('input_ids', 'attention_mask', 'position_ids')}).logits
    assert full.shape[:2]==inputs['input_ids'].shape                    # nothing of the selection stays behind
    assert pred.shape==(len(targets), full.shape[-1]) and gap(pred, full[inputs['loss_mask']]) < 1e-5
    logits,y = by_hand(hf, exs, shift)
    assert torch.equal(targets, y) and gap(pred, logits) < 1e-4

@pytest.mark.parametrize('arch,head', kinds)
def test_lora_packed(arch, head):
    hf,(packed,alone),shift = tiny(arch, head, lora=True, train=True),in_rows(examples(head)),head=='causal'
    pred = HFModel(hf)(make_batch(packed, tok.pad_token_id, shift=shift)[0])
    assert gap(pred, by_hand(hf, alone, shift)[0]) < 1e-4

@pytest.mark.parametrize('part', [0, 1], ids=['train', 'valid'])
@pytest.mark.parametrize('n_acc', [1, 2, 3])
@pytest.mark.parametrize('packed', [True, False], ids=['packed', 'by_length'])
def test_get_preds(packed, n_acc, part):
    "One row of probabilities a target, in the order of the loader's rows"
    hf,exs = tiny('llama'),examples()
    learn = lm_learner(lm_dls(exs, exs[:5], tok, 60, bs=2, n_acc=n_acc, packed=packed), hf)
    preds,targets = learn.get_preds(ds_idx=part)
    mine = exs[:5] if part else exs
    order = pack([len(e['input_ids']) for e in mine], 60) if packed else [[i] for i in range(len(mine))]
    logits,y = by_hand(hf.eval(), [mine[i] for r in order for i in r], True)
    assert torch.equal(targets, y) and preds.shape==(len(y), len(tok))
    assert gap(preds, logits.softmax(-1)) < 1e-5

def test_get_preds_more():
    "The losses and choices that come along, and a loader given by hand with a last accumulation group that is not full"
    hf,exs = tiny('gpt2'),examples()
    learn = lm_learner(lm_dls(exs, exs, tok, 60), hf)
    dl = LMDL([[e] for e in exs], tok, bs=2, n_acc=2, packed=False)
    preds,targets,chosen,losses = learn.get_preds(dl=dl, with_decoded=True, with_loss=True)
    logits,y = by_hand(hf.eval(), exs, True)
    assert torch.equal(targets, y) and torch.equal(chosen, logits.argmax(-1))
    assert gap(losses, F.cross_entropy(logits, y, reduction='none')) < 1e-4
