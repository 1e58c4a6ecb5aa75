"The whole loop against 🤗's Trainer: the same model, rows, order, rate and decay give the same losses and weights"
import copy, math
from functools import partial

import pytest, torch
from fastai.data.core import DataLoaders
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import SequentialSampler
from transformers import Trainer, TrainingArguments

from lmft.data.loaders import LMDL
from lmft.data.examples import text_example
from lmft.data.tokenizers import train_tokenizer
from lmft.train.callbacks import StepLog
from lmft.core import set_seed
from lmft.train.optim import adamw
from lmft.train.learner import lm_learner
from lmft.models.loading import new_model

words = 'the cat and a dog sat on my mat while ice cream melted slowly in that warm sun of June'.split()
lr,wd,bs = 3e-3,.1,4
eps = 1e-6        # what has no gradient but rounding (GPT-2's key biases) is not to be moved by AdamW

def ragged(n=45):
    "Texts of 1 to 30 words; the first half of most is context, so that batches hold very different numbers of targets"
    g = torch.Generator().manual_seed(0)
    lengths = torch.randint(1, 31, (n,), generator=g).tolist()
    texts = [' '.join(words[i] for i in torch.randint(len(words), (k,), generator=g)) for k in lengths]
    tok = train_tokenizer(texts, 300)
    exs = [text_example(dict(text=t), tok) for t in texts]
    for i,e in enumerate(exs):
        n_context = len(e['labels'])//2 if i%3 else 1        # 1: Trainer counts GPT-2's first token, too
        e['labels'] = torch.where(torch.arange(len(e['labels']))<n_context, -100, e['labels'])
    return tok, exs

tok,exs = ragged()

def tiny(arch):
    set_seed(0)
    return new_model(tok, arch=arch, **({'n_layer': 2} if arch=='gpt2' else {'num_hidden_layers': 2}))

class InOrder(Trainer):
    def _get_train_sampler(self, train_dataset=None): return SequentialSampler(self.train_dataset)

def collate(exs):
    "Padded on the right, as 🤗 models want it: they shift the labels themselves"
    def pad(vs, value): return pad_sequence(vs, batch_first=True, padding_value=value)
    ids,labels = zip(*((e['input_ids'], e['labels']) for e in exs))
    mask = [torch.ones_like(v) for v in ids]
    return dict(input_ids=pad(ids, 0), attention_mask=pad(mask, 0), labels=pad(labels, -100))

def theirs(hf, folder, n_acc, n_epoch, optimizers=(None, None)):
    "Losses and gradient norms of Trainer's steps; it trains `hf`, with AdamW and decay groups of its own"
    args = TrainingArguments(output_dir=folder, num_train_epochs=n_epoch, per_device_train_batch_size=bs,
        gradient_accumulation_steps=n_acc, learning_rate=lr, lr_scheduler_type='constant', weight_decay=wd,
        max_grad_norm=1., optim='adamw_torch', adam_beta1=.9, adam_beta2=.99, adam_epsilon=eps, logging_steps=1,
        save_strategy='no', report_to='none', use_cpu=True, disable_tqdm=True)
    trainer = InOrder(hf, args, data_collator=collate, train_dataset=exs, optimizers=optimizers)
    trainer.train()
    logs = [l for l in trainer.state.log_history if 'loss' in l]
    return [l['loss'] for l in logs], [l['grad_norm'] for l in logs]

def ours(hf, n_acc, fit):
    "Losses and rates of our steps"
    dl = LMDL([[e] for e in exs], tok, bs=bs, n_acc=n_acc, packed=False)
    learn,log = lm_learner(DataLoaders(dl, dl), hf, lr=lr, wd=wd, opt_func=partial(adamw, eps=eps)),StepLog(1)
    learn.add_cb(log)
    with learn.no_bar(), learn.no_logging(): fit(learn)
    return [r['loss'] for r in log.history], [r['lr'] for r in log.history]

def same(a, b, hf_a, hf_b):
    assert len(a)==len(b) >= 20
    torch.testing.assert_close(torch.tensor(a), torch.tensor(b), rtol=1e-4, atol=0)
    assert max((p-q).abs().max() for p,q in zip(hf_a.parameters(), hf_b.parameters())) < 1e-4

@pytest.mark.parametrize('n_acc', [1, 2])
@pytest.mark.parametrize('arch', ['llama', 'gpt2'])
def test_constant_rate(arch, n_acc, tmp_path):
    "45 rows: the last batch has one row, the last group five"
    hf,n_epoch = tiny(arch),2*n_acc
    other = copy.deepcopy(hf)
    losses,norms = theirs(other, tmp_path, n_acc, n_epoch)
    mine,_ = ours(hf, n_acc, lambda learn: learn.fit(n_epoch))
    assert max(norms) > 1 and losses[-1] < losses[0]-.5         # clipping is at work, and so is training
    same(mine, losses, hf, other)

def cosine(k, n, rise):
    "Share of the highest rate at step `k` of `n`: up along half a cosine for `rise` of the run, down to a tenth"
    pos,wave = k/n, lambda x: (1-math.cos(math.pi*x))/2
    return .1+.9*(wave(pos/rise) if pos<rise else 1-wave((pos-rise)/(1-rise)))

def decay_groups(hf):
    "By module: embeddings and linear layers decay their weights, nothing else decays"
    decays = {id(m.weight) for m in hf.modules() if type(m).__name__ in ('Linear', 'Conv1D', 'Embedding')}
    return [dict(params=[p for p in hf.parameters() if (id(p) in decays)==d], weight_decay=wd*d) for d in (True, False)]

@pytest.mark.parametrize('n_acc', [1, 2])
def test_cosine(n_acc, tmp_path):
    hf,n_epoch,n = tiny('llama'),2*n_acc,24
    other = copy.deepcopy(hf)
    opt = torch.optim.AdamW(decay_groups(other), lr=lr, betas=(.9, .99), eps=eps)
    sched = torch.optim.lr_scheduler.LambdaLR(opt, lambda k: cosine(k, n, .25))
    losses,_ = theirs(other, tmp_path, n_acc, n_epoch, (opt, sched))
    mine,rates = ours(hf, n_acc, lambda learn: learn.fit_cos(n_epoch, warmup=.25))
    assert rates==pytest.approx([lr*cosine(k, n, .25) for k in range(n)], rel=1e-6)
    same(mine, losses, hf, other)
