"What lesson 07b cannot hold: adapters of a later lesson, and callbacks that come between"
import json

import pytest, torch
from fastcore.basics import noop

import lmft.models.adapters
from lmft.data.examples import clm_examples
from lmft.data.loaders import lm_dls, make_batch
from lmft.data.tokenizers import train_tokenizer
from lmft.train.callbacks import SampleText, mixed_precision
from lmft.train.checkpoints import weights_hash
from lmft.core import LmftError, set_seed
from lmft.train.learner import Accuracy, lm_learner, token_loss
from lmft.models.wrapper import HFModel
from lmft.models.parts import blocks_of
from lmft.models.loading import new_model
from lmft.models.methods import trainable
from lmft.train.speed import FusedLoss, checkpoint_blocks, compile_blocks, peak_memory

words = 'the cat and a dog sat on my mat while ice cream melted slowly in that warm sun of June'.split()
tok = train_tokenizer([' '.join(words)], 300)

def grads(method, prepare, arch='llama'):
    set_seed(0)
    model = trainable(new_model(tok, arch=arch, seq_len=64), method)
    for n,p in model.named_parameters():
        if p.requires_grad and 'bottleneck' in n: torch.nn.init.normal_(p, std=.05)
    model = HFModel(prepare(model)).train()
    rows = [[dict(input_ids=ids, labels=ids)] for ids in torch.randint(9, len(tok), (3, 20))]
    inputs,y = make_batch(rows, packed=method!='prompt:4')
    token_loss(model(inputs), y).mean().backward()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])

@pytest.mark.parametrize('method', ['seq_adapter:4', 'par_adapter:4', 'prompt:4', 'lora:4'])
@pytest.mark.parametrize('arch', ['llama', 'gpt2', 'bert'])
def test_blocks_computed_again_give_the_same_gradients(method, arch):
    if (method, arch)==('prompt:4', 'bert'): pytest.skip('peft has no soft prompt for masked models that trains')
    calls = []
    def counted(prepare):
        def f(m):
            next(blocks_of(m)[0].children()).register_forward_pre_hook(lambda *_: calls.append(prepare))
            return prepare(m)
        return f
    a,b = (grads(method, counted(prepare), arch) for prepare in (noop, checkpoint_blocks))
    assert a.abs().max()>0 and torch.equal(a, b)
    assert (calls.count(noop), calls.count(checkpoint_blocks))==(1, 2)

@pytest.mark.parametrize('method', ['seq_adapter:4', 'par_adapter:4'])
def test_compiled_blocks_with_adapters(method):
    a,b = (grads(method, f) for f in (lambda m: m, lambda m: compile_blocks(m, backend='aot_eager')))
    assert torch.allclose(a, b, atol=1e-5)

def test_prefix_is_refused():
    with pytest.raises(LmftError, match='does not go with prefix'): checkpoint_blocks(trainable(new_model(tok), 'prefix'))

def fit(*cbs, prompts=('the cat',)):
    exs = clm_examples([dict(text=' '.join(words[i:i+8])) for i in range(10)]*4, tok, 32)
    set_seed(0)
    sample = SampleText(tok, list(prompts), every=1, max_new_tokens=4)
    learn = lm_learner(lm_dls(exs, exs[:4], tok, 32, bs=2, n_acc=2, device='cpu'), new_model(tok), lr=1e-3, cbs=[sample, *cbs])
    with learn.no_bar(), learn.no_logging(): learn.fit_cos(steps=3)
    return learn

def test_text_is_sampled_between_steps_with_all_logits():
    plain,fused = fit(),fit(FusedLoss())
    assert plain.sample_text.samples==fused.sample_text.samples
    assert abs(plain.final_record[0]-fused.final_record[0])<1e-4

def test_half_precision_stays_with_the_plain_loss_to_its_rounding():
    plain,fused = fit(*mixed_precision('bf16')),fit(FusedLoss(), *mixed_precision('bf16'))
    assert abs(plain.final_record[0]-fused.final_record[0])<2e-2

def test_a_fit_that_was_cut_off_leaves_nothing_behind():
    learn = fit(FusedLoss())
    learn.fused_loss.before_fit()                                  # and no after_fit, as when the user stops a cell
    whole = learn.validate()[0]
    learn.fused_loss.before_fit()
    learn.fused_loss.after_fit()
    assert learn.validate()[0]==whole and learn.loss_func.func is token_loss and '_logits' not in vars(learn.model)

@pytest.mark.parametrize('n_acc', [1, 2])
def test_logits_are_not_kept_for_the_backward_pass(n_acc):
    "Unless a metric of the training wants them: one tensor of logits less at the peak"
    ids = torch.randint(9, 9000, (64,))
    def peak(watch):
        set_seed(0)
        dls = lm_dls([dict(input_ids=ids, labels=ids)]*8, [dict(input_ids=ids, labels=ids)], None, 64, bs=8//n_acc, n_acc=n_acc, device='cpu')
        learn = lm_learner(dls, new_model(tok, vocab_size=9000, num_hidden_layers=1, hidden_size=32), metrics=Accuracy())
        learn.recorder.train_metrics = watch
        with learn.no_bar(), learn.no_logging(): return peak_memory(lambda: learn.fit(1))
    logits = 8//n_acc*63*9000*4
    assert .9<(peak(True)-peak(False))/logits<1.5

def test_same_weights_on_every_run():
    assert weights_hash(fit(FusedLoss()).model)==weights_hash(fit(FusedLoss()).model)

def test_commands_take_the_switches(tmp_path, monkeypatch):
    "Blocks computed again: the same model bit for bit; compiled: rejected in one line where there is no compiler"
    from running import log, run
    data = tmp_path/'text.jsonl'
    data.write_text(''.join(json.dumps(dict(text=f'{i} '+' '.join(words[i%9:i%9+8])))+'\n' for i in range(40)))
    args = ['pretrain', '--data', data, '--vocab_size', 300, '--max_steps', 3, '--seq_len', 32, '--device', 'cpu']
    run(*args, '--out', tmp_path/'a')
    again = []
    with monkeypatch.context() as m:
        m.setattr('lmft.runs.checkpoint_blocks', lambda model: again.append(checkpoint_blocks(model)))
        run(*args, '--out', tmp_path/'b', '--gradient_checkpointing')
    assert len(again)==1
    same = [(tmp_path/d/'model/model.safetensors').read_bytes() for d in 'ab']
    assert same[0]==same[1]
    traced = []
    with monkeypatch.context() as m:                               # traced as the compiler does, without C++; texts are sampled on the way
        m.setattr('lmft.runs.compile_blocks', lambda model: traced.append(compile_blocks(model, backend='aot_eager')))
        run(*args, '--out', tmp_path/'d', '--compile')
    assert len(traced)==1
    assert [r['loss'] for r in log(tmp_path/'d')]==pytest.approx([r['loss'] for r in log(tmp_path/'a')], abs=1e-4)
    cards = [(tmp_path/d/'model/README.md').read_text() for d in 'ad']
    assert cards[0].count('- step ')==cards[1].count('- step ')>0
    monkeypatch.setenv('PATH', '/nowhere')
    monkeypatch.setenv('CXX', 'no-such-compiler')
    assert 'C++ compiler' in run(*args, '--out', tmp_path/'c', '--compile', code=2)
    assert not (tmp_path/'c').exists()

def test_the_head_is_found_in_one_look(monkeypatch):
    "Each forward of a model with labels asks for its head: that must not search the blocks once for every module"
    from lmft.models import parts
    from transformers import BertConfig, BertForTokenClassification
    calls, look = [], parts.block_stacks
    monkeypatch.setattr(parts, 'block_stacks', lambda body: calls.append(body) or look(body))
    sizes = dict(hidden_size=16, num_attention_heads=2, intermediate_size=16, vocab_size=50, num_hidden_layers=12)
    model = BertForTokenClassification(BertConfig(**sizes))
    assert parts.head_of(model) is model.classifier
    assert len(calls) == 1
