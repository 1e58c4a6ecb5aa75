"Preferences beside TRL, in padding of all kinds, and on real files"
import copy, math, os
from types import SimpleNamespace

import pytest, torch
from fastai.callback.core import Callback

import lmft.models.adapters
from lmft.core import BadRecord, LmftError, set_seed
from lmft.data.tokenizers import train_tokenizer
from lmft.train.callbacks import mixed_precision
from lmft.train.checkpoints import weights_hash
from lmft.generation import seq_logps
from lmft.models.wrapper import HFModel
from lmft.models.parts import blocks_of
from lmft.models.loading import load_model, new_model, save_model
from lmft.stages.pairs import PairDL, cache_logps, dpo_dls, pair_examples, reward_dls, row_logps
from lmft.stages.preference_losses import Pairs, preference_loss_of, preference_losses, with_margin, without_reference
from lmft.stages.builders import dpo_learner, reward_learner
from lmft.stages.kto import kto_dls, kto_from_dls, kto_loss, labelled_records
from lmft.stages.preferences import dpo_from_dls, reward_from_dls, reward_scores
from lmft.stages.rankings import rankings_to_pairs, split_by_prompt
from lmft.data.records import read_records
from lmft.train.speed import checkpoint_blocks
from lmft.world.facts import World
from lmft.world.judge import pair_rows, ranking_rows

os.environ.setdefault('HF_HUB_OFFLINE', '1')
rows = pair_rows(World(0), 24)
tok = train_tokenizer([t for r in rows for t in (r['prompt'], r['chosen'], r['rejected'])], 500)

def model(head=None, arch='llama', seed=0, **kwargs):
    set_seed(seed)
    return new_model(tok, arch=arch, head=head, seq_len=128, **kwargs)

def as_conversation(r):
    "A pair as TRL reads conversations"
    def turn(role, text): return [dict(role=role, content=text)]
    return dict(prompt=turn('user', r['prompt']), chosen=turn('assistant', r['chosen']),
                rejected=turn('assistant', r['rejected']))

def trl_args(cls, folder, **kwargs):
    return cls(str(folder), per_device_train_batch_size=8, use_cpu=True, bf16=False, report_to='none', max_length=None,
               gradient_checkpointing=False, disable_tqdm=True, **kwargs)

def grads(m): return {n: p.grad.clone() for n,p in m.named_parameters() if p.grad is not None}

@pytest.mark.parametrize('ours,theirs', [(dict(name='sigmoid'), {}), (dict(name='hinge'), dict(loss_type='hinge')), (dict(name='ipo'), dict(loss_type='ipo')),
    (dict(name='apo_zero'), dict(loss_type='apo_zero')), (dict(name='apo_down'), dict(loss_type='apo_down')), (dict(name='nca'), dict(loss_type='nca_pair')),
    (dict(label_smoothing=.2, robust=True), dict(loss_type='robust', label_smoothing=.2))], ids=lambda o: o.get('name') or o.get('loss_type', ''))
def test_dpo_equals_trl(tmp_path, ours, theirs):
    "Tokens, loss and gradients of a policy that has left its reference"
    options = ours
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer
    policy,ref = model(seed=1),model(seed=2)
    mine = copy.deepcopy(policy)
    some = rows[:8]
    trainer = DPOTrainer(policy, ref_model=ref, args=trl_args(DPOConfig, tmp_path, beta=.3, **theirs), processing_class=tok,
                         train_dataset=Dataset.from_list([as_conversation(r) for r in some]))
    batch = trainer.data_collator([trainer.train_dataset[i] for i in range(8)])
    theirs = trainer.compute_loss(trainer.model, batch)
    theirs.backward()

    pairs,_ = pair_examples(some, tok)
    dl = PairDL(pairs, tok, bs=8, packed=False)
    cache_logps(dl, ref)
    inputs,ref_logps,tokens,n = dl.one_batch()
    rows_of = lambda ids, mask: [i[m.bool()].tolist() for i,m in zip(ids, mask)]
    ids = rows_of(inputs['input_ids'], inputs['attention_mask'])
    assert ids[::2]+ids[1::2]==rows_of(batch['input_ids'], batch['attention_mask'])
    assert tokens.tolist()==[t for pair in zip(*torch.arange(16).view(2, 8).tolist()) for i in pair
                             for t in batch['input_ids'][i][batch['completion_mask'][i].bool()].tolist()]
    logps = row_logps(HFModel(mine)(inputs), tokens, n)
    ours = preference_loss_of(**options, beta=.3)(Pairs(*logps.unbind(1), *ref_logps.unbind(1), *n.unbind(1))).mean()
    ours.backward()
    if options=={'name': 'sigmoid'}: assert abs(ours-.6931)>.01           # the policy is not where it began
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    theirs_by_name = grads(trainer.model)
    for n_,g in grads(mine).items(): torch.testing.assert_close(g, theirs_by_name[n_], rtol=1e-3, atol=1e-6)

def test_losses_without_a_reference_equal_trl():
    "SimPO and ORPO on the same mean log-probabilities, value and gradient"
    from trl.experimental.cpo.cpo_trainer import CPOTrainer
    from trl.experimental.orpo.orpo_trainer import ORPOTrainer
    set_seed(0)
    logps = (-10*torch.rand(2, 9)-1).requires_grad_()
    n = torch.randint(1, 9, (2, 9))
    pairs,fake = Pairs(*logps, *torch.zeros(2, 9), *n),SimpleNamespace(loss_type='simpo', alpha=0., beta=2., simpo_gamma=.5, label_smoothing=0., accelerator=SimpleNamespace(device='cpu'))
    ours = preference_loss_of('simpo')(pairs)
    theirs = CPOTrainer.cpo_loss(fake, *(logps/n))[0]
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(*(torch.autograd.grad(x.sum(), logps, retain_graph=True)[0] for x in (ours, theirs)))
    fake.beta = .1
    ours = preference_loss_of('orpo')(pairs)
    theirs = -(logps/n)[0]-ORPOTrainer.odds_ratio_loss(fake, *(logps/n))[0]            # what its trainer adds up
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(*(torch.autograd.grad(x.sum(), logps, retain_graph=True)[0] for x in (ours, theirs)))

def test_kto_equals_trl(tmp_path):
    "Tokens of the answers and of the unrelated ones, baseline, loss and gradients of a policy that has left its reference"
    from datasets import Dataset
    from trl import KTOConfig, KTOTrainer
    ref = model(seed=2)
    policy = copy.deepcopy(ref)
    with torch.no_grad():                                                        # unrelated answers are more probable, so z0 is above 0
        for q in policy.parameters(): q.mul_(.8)
    mine = copy.deepcopy(policy)
    some = [dict(prompt=r['prompt'], completion=r['chosen' if i%2 else 'rejected'], label=i%2==1) for i,r in enumerate(rows[:8])]
    def turn(role, text): return [dict(role=role, content=text)]
    data = Dataset.from_list([dict(prompt=turn('user', r['prompt']), completion=turn('assistant', r['completion']), label=r['label']) for r in some])
    trainer = KTOTrainer(policy, ref_model=ref, args=trl_args(KTOConfig, tmp_path, beta=.3, desirable_weight=1.2, undesirable_weight=.7, train_sampling_strategy='sequential'),
                         processing_class=tok, train_dataset=data)
    batch = trainer.data_collator([trainer.train_dataset[i] for i in range(8)])
    theirs = trainer.compute_loss(trainer.model, batch)
    theirs.backward()
    long = dict(some[0], completion=' '.join(r['rejected'] for r in rows[:3]))             # so that no unrelated answer is cut
    dls = kto_dls(some, [*some, long], tok, bs=8)
    learn = kto_from_dls(dls, mine, beta=.3, desirable_weight=1.2, undesirable_weight=.7, lr=1e-9)
    learn.unrelated_answers.ref_model = ref
    inputs,*_ = b = dls.valid.new(shuffle=False).one_batch()
    def ids_of(ids, mask): return [i[m.bool()].tolist() for i,m in zip(ids, mask)]
    assert ids_of(inputs['input_ids'], inputs['attention_mask'])==ids_of(batch['input_ids'], batch['attention_mask'])
    other = inputs['unrelated'][0]
    assert ids_of(other['input_ids'], other['attention_mask'])==ids_of(batch['KL_input_ids'], batch['KL_attention_mask'])
    learn.xb,learn.yb,learn.training = b[:1],b[1:],True
    learn.unrelated_answers.before_batch()
    ours = learn.loss_func(learn.model(inputs), *learn.yb)
    ours.backward()
    assert learn.yb[-1][0]>.1 and abs(ours-.475)>.01
    torch.testing.assert_close(learn.yb[-1][0].item(), trainer._metrics['train']['kl'][-1], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    theirs_by_name = grads(trainer.model)
    for n,g in grads(mine).items(): torch.testing.assert_close(g, theirs_by_name[n], rtol=1e-3, atol=1e-6)

def labelled(i, r): return dict(prompt=r['prompt'], completion=r['chosen' if i%2 else 'rejected'], label=i%2==1)

def test_kto_by_builder_and_files(tmp_path):
    "Labelled answers of a file, conversations with a label, and pairs; a bad answer never gets into supervised tuning"
    import json
    from lmft.stages.builders import sft_learner
    path,turns = tmp_path/'kto.jsonl',tmp_path/'turns.jsonl'
    some = [labelled(i, r) for i,r in enumerate(rows)]
    path.write_text('\n'.join(json.dumps(r) for r in some))
    turns.write_text('\n'.join(json.dumps(dict(r, prompt=[dict(role='user', content=r['prompt'])], completion=[dict(role='assistant', content=r['completion'])])) for r in some))
    counts = []
    for data in (path, turns, some, rows):
        learn = dpo_learner(data, model(), tok=tok, loss='kto', method='full', bs=4, lr=3e-3)
        start = learn.validate()
        counts.append(sum(len(dl.dataset) for dl in learn.dls.loaders))
        assert start[0]==pytest.approx(.5, abs=1e-5)
    assert counts==[24, 24, 24, 48]
    learn.fit_cos(8)
    end = dict(zip(learn.recorder.metric_names[2:], learn.recorder.values[-1][1:]))
    assert end['reward_good']>end['reward_bad']+.1
    for data in (path, turns, some):
        with pytest.raises(LmftError, match='is false: people disliked this answer'): sft_learner(data, model(), tok=tok)
    for loss in preference_losses:
        with pytest.raises(LmftError, match="loss 'kto' takes labels"): dpo_learner(path, model(), tok=tok, loss=loss)
    with pytest.raises(LmftError, match="loss 'kto' does not use label_smoothing"): dpo_learner(path, model(), tok=tok, loss='kto', label_smoothing=.1)
    with pytest.raises(LmftError, match="loss 'ipo' does not use desirable_weight"): dpo_learner(rows, model(), tok=tok, loss='ipo', desirable_weight=2.)

@pytest.mark.parametrize('loss', sorted(without_reference))
@pytest.mark.parametrize('reference', ['adapter', 'copy', 'cached'])
def test_a_reference_that_a_loss_cannot_read_is_rejected(loss, reference):
    for method in ('full', 'lora'):
        with pytest.raises(LmftError, match=f"loss '{loss}' reads no reference; leave out reference='{reference}'"):
            dpo_learner(rows, model(), tok=tok, loss=loss, method=method, reference=reference)
    assert len(dpo_learner(rows, model(), tok=tok, loss=loss, method='lora', bs=4).dls.train.dataset)>10

def test_options_name_every_loss():
    import typing
    from lmft.stages.defaults import dpo_options
    assert {*typing.get_args(dpo_options.__annotations__['loss'])}=={*preference_losses, 'kto'}

def test_margins_equal_trl(tmp_path):
    "The reward model's loss with the column `margin`, value and gradient"
    from datasets import Dataset
    from trl import RewardConfig, RewardTrainer
    hf = model('sequence_classification', num_labels=1)
    mine,some = copy.deepcopy(hf),[dict(r, margin=.5*i) for i,r in enumerate(rows[:8])]
    trainer = RewardTrainer(hf, args=trl_args(RewardConfig, tmp_path), processing_class=tok,
                            train_dataset=Dataset.from_list([dict(as_conversation(r), margin=r['margin']) for r in some]))
    theirs = trainer.compute_loss(trainer.model, trainer.data_collator([trainer.train_dataset[i] for i in range(8)]))
    theirs.backward()
    learn = reward_from_dls(reward_dls(some, some, tok, bs=8), mine, lr=1e-9)
    inputs,*targets = learn.dls.valid.one_batch()
    ours = learn.loss_func(learn.model(inputs), *targets)
    ours.backward()
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    theirs_by_name = grads(trainer.model)
    for n,g in grads(mine).items(): torch.testing.assert_close(g, theirs_by_name[n], rtol=1e-3, atol=1e-6)

@pytest.mark.parametrize('n_acc', [1, 2])
def test_margins_of_a_file_reach_the_loss(tmp_path, capsys, n_acc):
    "At the start, DPO's loss with a margin of m is log(1 + e^m); a loss that has no use for it says so"
    import json
    path = tmp_path/'pairs.jsonl'
    path.write_text('\n'.join(json.dumps(dict(r, margin=2)) for r in rows))
    for reference in ('adapter', 'copy', 'cached'):
        learn = dpo_learner(path, model(), tok=tok, reference=reference, bs=4//n_acc, n_acc=n_acc, lr=1e-9, cbs=(keep := LossLog()))
        learn.fit_cos(1)
        assert keep.rows[0]==pytest.approx(2.126928, abs=1e-4)
    assert 'the margins' not in capsys.readouterr().err
    for loss in sorted({*preference_losses, 'kto'}-with_margin) if n_acc==1 else ():       # a hint is said once
        assert math.isfinite(dpo_learner(path, model(), tok=tok, loss=loss, bs=4).validate()[0])
        said = capsys.readouterr()
        assert f"loss '{loss}' does not use the margins" in said.err+said.out, loss
    assert reward_learner(path, model('sequence_classification', num_labels=1), tok=tok).dls.valid.one_batch()[-1].unique().tolist()==[2]

@pytest.mark.parametrize('loss', ['ipo', 'simpo', 'orpo', 'apo_down'])
def test_a_policy_learns_by_every_loss(loss):
    "After some steps the chosen answers are preferred; a loss without a reference does not compute one"
    set_seed(0)
    dls = dpo_dls(rows[:16], rows[:16], tok, bs=8)
    learn = dpo_from_dls(dls, model(), 'full', loss=loss, lr=3e-3, loss_options=dict(label_smoothing=.05) if loss=='ipo' else {})
    before = learn.validate()
    learn.fit_cos(12)
    after = learn.validate()
    names = learn.recorder.metric_names
    assert after[0]<before[0] and dict(zip(names[2:], after[1:]))['pair_accuracy']>.8
    if loss in without_reference: assert all(e['ref']==0 for pair in dls.train.dataset for e in pair)

@pytest.mark.parametrize('center', [None, .1])
def test_reward_equals_trl(tmp_path, center):
    "Scores, loss and gradients of a reward model, with and without rewards held around 0"
    from datasets import Dataset
    from trl import RewardConfig, RewardTrainer
    hf = model('sequence_classification', num_labels=1)
    mine,some = copy.deepcopy(hf),rows[:8]
    trainer = RewardTrainer(hf, args=trl_args(RewardConfig, tmp_path, center_rewards_coefficient=center), processing_class=tok,
                            train_dataset=Dataset.from_list([as_conversation(r) for r in some]))
    batch = trainer.data_collator([trainer.train_dataset[i] for i in range(8)])
    theirs = trainer.compute_loss(trainer.model, batch)
    theirs.backward()
    dls = reward_dls(some, some[:1], tok, bs=8)
    learn = reward_from_dls(dls, mine, center=center or 0., lr=1e-9)
    inputs,decided = dls.valid.new(dls.train.dataset).one_batch()
    pred = learn.model(inputs)
    ours = learn.loss_func(pred, decided)
    ours.backward()
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    theirs_by_name = grads(trainer.model)
    for n,g in grads(mine).items(): torch.testing.assert_close(g, theirs_by_name[n], rtol=1e-3, atol=1e-6)

class LossLog(Callback):
    "Losses of the steps of a fit"
    order,run_valid = 90,False
    def before_fit(self): self.rows = []
    def after_batch(self): self.rows.append(self.loss.item())

@pytest.mark.parametrize('dropout', [0., .3])
@pytest.mark.parametrize('n_acc', [1, 2])
def test_reference_modes_are_equal(dropout, n_acc):
    "Disabled adapter, frozen copy and cached log-probabilities train alike, with dropout in the checkpoint too"
    losses = {}
    for reference in ('adapter', 'copy', 'cached'):
        dls = dpo_dls(rows[:16], rows[16:], tok, bs=4//n_acc, n_acc=n_acc)
        m = model(arch='gpt2', attn_pdrop=dropout, resid_pdrop=dropout, embd_pdrop=dropout)
        set_seed(0)
        learn = dpo_from_dls(dls, m, 'lora', reference=reference, lr=3e-3, cbs=(keep := LossLog()))
        learn.fit_cos(2)
        losses[reference] = keep.rows
        assert abs(keep.rows[0]-.693147)<1e-5, 'the policy begins at its reference'
        assert keep.rows[-1]<.6
        assert not any(p.requires_grad for n,p in learn.model.named_parameters() if 'lora' not in n)
    for a,b,c in zip(*losses.values()):
        assert a==pytest.approx(b, abs=2e-5) and a==pytest.approx(c, abs=2e-5)

def norm_calls(m):
    "How often the first norm of the first block is reached, counted from now on: checkpointing calls it once more a step"
    norm,n = next(x for x in blocks_of(m)[0].modules() if isinstance(x, torch.nn.LayerNorm)),[]
    norm.register_forward_pre_hook(lambda *_: n.append(1))
    return n

@pytest.mark.parametrize('reference, method', [('adapter', 'lora'), ('copy', 'full'), ('adapter', 'seq_adapter')])
def test_blocks_computed_again_train_alike_without_dropout(reference, method):
    "`checkpoint_blocks` takes effect though dropout is off, dropout stays off, and the weights are equal bit for bit"
    weights,counts = [],[]
    for prepare in (lambda m: m, checkpoint_blocks):
        m = model(arch='gpt2', attn_pdrop=.3, resid_pdrop=.3, embd_pdrop=.3)
        set_seed(0)
        learn = dpo_from_dls(dpo_dls(rows[:16], rows[16:], tok, bs=4), m, method, reference=reference, lr=3e-3)
        prepare(learn.model.hf)
        n = norm_calls(learn.model.hf)
        learn.fit_cos(2)
        weights.append(weights_hash(learn.model))
        counts.append(len(n))
    assert weights[0]==weights[1]
    assert counts[1]-counts[0]==learn.train_iter

def test_dropout_of_a_block_itself_is_not_let_in():
    from transformers import OPTConfig, OPTForCausalLM
    opt = OPTForCausalLM(OPTConfig(vocab_size=len(tok), hidden_size=16, ffn_dim=16, num_hidden_layers=1, num_attention_heads=2,
                                   word_embed_proj_dim=16, max_position_embeddings=128))
    learn = dpo_from_dls(dpo_dls(rows[:4], rows[16:], tok, bs=4), checkpoint_blocks(opt), 'full', reference='copy')
    with pytest.raises(LmftError, match='OPTDecoderLayer has a dropout of its own'): learn.fit_cos(1)

def test_cached_logps_are_in_the_precision_of_the_policy():
    "An untrained policy is its reference in bf16 as well, not only to the digits that bf16 drops"
    away = {}
    for reference in ('copy', 'cached'):
        learn = dpo_from_dls(dpo_dls(rows[:8], rows[8:], tok, bs=4), model(), reference=reference, lr=1e-12,
                            cbs=[*mixed_precision('bf16'), (keep := LossLog())])
        learn.fit_cos(1)
        away[reference] = max(abs(x-.6931472) for x in keep.rows)
    assert away['copy']==pytest.approx(0, abs=1e-6) and away['cached']==pytest.approx(0, abs=1e-6)

@pytest.mark.parametrize('reference', ['copy', 'cached'])
def test_gradual_unfreezing_comes_with_its_method(reference):
    "Blocks stay as they are until their stage; at the end all weights have moved"
    m = model()
    before = {n: p.detach().clone() for n,p in m.named_parameters()}
    def moved(): return {n for n,p in m.named_parameters() if (p!=before[n]).any()}
    class First(Callback):
        run_valid = False
        def after_batch(self):
            if not hasattr(self, 'seen'): self.seen = moved()
    learn = dpo_from_dls(dpo_dls(rows[:16], rows[16:], tok, bs=2), m, 'gradual', reference=reference, lr=1e-3,
                        cbs=(first := First()))
    learn.fit_cos(2)
    assert first.seen and not any('layers.' in n for n in first.seen)
    assert moved()==set(before)

def test_full_tuning_has_a_reference_of_its_own():
    kept = {}
    for reference in ('copy', 'cached'):
        learn = dpo_from_dls(dpo_dls(rows[:16], rows[16:], tok, bs=4), model(), reference=reference, lr=1e-3,
                            cbs=(keep := LossLog()))
        learn.fit_cos(2)
        kept[reference] = keep.rows
    assert kept['copy']==pytest.approx(kept['cached'], abs=2e-5) and kept['copy'][-1]<.5
    with pytest.raises(LmftError, match='needs an adapter'):
        dpo_from_dls(dpo_dls(rows[:16], rows[16:], tok), model(), 'full', reference='adapter')
    with pytest.raises(LmftError, match='is unknown'):
        dpo_from_dls(dpo_dls(rows[:16], rows[16:], tok), model(), reference='other')

def test_windows_train_like_one_batch():
    def after(bs, n_acc):
        set_seed(0)
        learn = dpo_from_dls(dpo_dls(rows[:16], rows[16:], tok, bs=bs, n_acc=n_acc), model(), lr=1e-3)
        learn.fit_cos(1)
        return torch.cat([p.detach().flatten() for p in learn.model.parameters()])
    torch.testing.assert_close(after(8, 1), after(2, 4), rtol=1e-4, atol=2e-5)

@pytest.mark.parametrize('arch', ['llama', 'gpt2'])
@pytest.mark.parametrize('pad_is_eos', [False, True])
def test_reward_is_read_at_the_last_token(arch, pad_is_eos):
    "Whatever pads, on whichever side, in whatever company, with and without a stop token"
    hf = model('sequence_classification', arch, num_labels=1).eval()
    t = copy.deepcopy(tok)
    if pad_is_eos: t.pad_token = t.eos_token
    prompts,answers = [r['prompt'] for r in rows],[r['rejected'] for r in rows]
    ends = [i%3>0 for i in range(len(rows))]                      # each third answer was cut by length
    truth = []
    for p,a,end in zip(prompts, answers, ends):
        talk = [dict(role='user', content=p), dict(role='assistant', content=a)]
        ids = t.apply_chat_template(talk, return_dict=False)
        assert ids[-1]==t.eos_token_id
        ids = torch.tensor([ids if end else ids[:-1]])
        hidden = hf.base_model(input_ids=ids).last_hidden_state
        truth.append(hf.score(hidden[0, -1]).item())
    for kwargs in (dict(bs=1), dict(bs=7), dict(bs=64), dict(bs=64, left=True)):
        got = reward_scores(hf, t, prompts, answers, ends, **kwargs)
        torch.testing.assert_close(got, torch.tensor(truth), rtol=1e-4, atol=1e-5)
    back = reward_scores(hf, t, prompts[::-1], answers[::-1], ends[::-1], bs=5)
    torch.testing.assert_close(back.flip(0), torch.tensor(truth), rtol=1e-4, atol=1e-5)
    assert len(set(truth))==len(truth)

def test_transformers_scores_the_saved_model_alike(tmp_path):
    "A folder of weights and a LoRA folder, loaded by transformers and peft alone"
    from peft import PeftModel
    from transformers import AutoModelForSequenceClassification, AutoTokenizer
    save_model(model(), tok, tmp_path/'base')
    for method in ('full', 'lora'):
        hf = load_model(tmp_path/'base', 'sequence_classification', num_labels=1)
        learn = reward_from_dls(reward_dls(rows, rows[:4], tok, bs=8), hf, method)
        learn.fit_cos(2)
        save_model(learn.model.hf, tok, tmp_path/method)
        below = tmp_path/('base' if method=='lora' else method)
        base = AutoModelForSequenceClassification.from_pretrained(below, num_labels=1)
        theirs = PeftModel.from_pretrained(base, tmp_path/method) if method=='lora' else base
        t = AutoTokenizer.from_pretrained(tmp_path/method)
        talks = [[dict(role='user', content=r['prompt']), dict(role='assistant', content=r['chosen'])] for r in rows]
        batch = t.apply_chat_template(talks, padding=True, return_tensors='pt', return_dict=True)
        batch.pop('token_type_ids', None)
        with torch.no_grad(): want = theirs.eval()(**batch).logits[:, 0]
        for mine in (learn.model.hf, load_model(tmp_path/method, 'sequence_classification', num_labels=1)):
            got = reward_scores(mine, tok, [r['prompt'] for r in rows], [r['chosen'] for r in rows])
            torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)

@pytest.mark.parametrize('method', ['prompt:4', 'prefix:4', 'seq_adapter', 'par_adapter'])
def test_reference_below_every_adapter(method):
    "What is below the adapter is what its log-probabilities were cached from"
    kept = {}
    for reference in ('adapter', 'cached'):
        set_seed(0)
        m = model()
        set_seed(0)
        learn = dpo_from_dls(dpo_dls(rows[:8], rows[16:], tok, bs=4), m, method, reference=reference, lr=1e-2,
                            cbs=(keep := LossLog()))
        learn.fit_cos(2)
        kept[reference] = keep.rows
    assert kept['adapter']==pytest.approx(kept['cached'], abs=3e-5) and len(set(kept['cached']))==4

@pytest.mark.parametrize('method,lr', [('full', 1e-3), ('lora', 1e-2)])
def test_reward_models_learn(method, lr):
    "Loss of the training pairs falls to a third"
    learn = reward_from_dls(reward_dls(rows, rows, tok, bs=8), model('sequence_classification', num_labels=1), method, lr=lr)
    before = learn.validate()[0]
    learn.fit_cos(15)
    assert learn.validate()[0]<before/3

@pytest.mark.parametrize('marked', [True, False])
def test_templates_that_write_on_after_the_stop_token(marked):
    "A line break behind each turn is neither trained nor judged"
    t,turn = copy.deepcopy(tok),"{{ m.content }}<|end|>"
    if marked: turn = '{% generation %}'+turn+'{% endgeneration %}'
    t.chat_template = ("{% for m in messages %}<|{{ m.role }}|>{% if m.role=='assistant' %}"+turn+
                       "{% else %}{{ m.content }}<|end|>{% endif %}{{ '\\n' }}{% endfor %}"
                       '{% if add_generation_prompt %}<|assistant|>{% endif %}')
    some,hf,judge = rows[:6],model().eval(),model('sequence_classification', num_labels=1).eval()
    talks = [[dict(role='user', content=r['prompt']), dict(role='assistant', content=r['chosen'])] for r in some]
    whole = [t.apply_chat_template(m, tokenize=False) for m in talks]
    ids = [t(w[:-1], add_special_tokens=False).input_ids for w in whole]
    assert all(w.endswith('<|end|>\n') for w in whole) and all(i[-1]==t.eos_token_id for i in ids)
    pairs,_ = pair_examples(some, t)
    assert [c['input_ids'].tolist() for c,_ in pairs]==ids
    assert [t.decode(c['labels'][c['labels']!=-100]) for c,_ in pairs]==[r['chosen']+'<|end|>' for r in some]
    inputs,_,tokens,n = PairDL(pairs, t, bs=6, packed=False).one_batch()
    asked = [m[:1] for m in talks]
    with torch.no_grad(): logps = row_logps(HFModel(hf)(inputs), tokens, n)[:, 0]
    torch.testing.assert_close(logps, seq_logps(hf, t, asked, [r['chosen'] for r in some]), rtol=1e-4, atol=1e-4)
    for end in (True, False):
        read = [torch.tensor([i if end else i[:-1]]) for i in ids]
        with torch.no_grad(): want = torch.cat([judge(input_ids=i).logits[0] for i in read])
        got = reward_scores(judge, t, asked, [r['chosen'] for r in some], end)
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)

def test_pairs_that_tie_need_their_own_likelihood():
    pairs = rankings_to_pairs(ranking_rows(World(0), 12), ties=True)
    assert 5<sum(bool(p.get('tie')) for p in pairs)<len(pairs)
    with pytest.raises(LmftError, match='hold ties'):
        reward_from_dls(reward_dls(pairs, pairs, tok), model('sequence_classification', num_labels=1))

def test_what_is_no_reward_model_is_refused():
    dls = reward_dls(rows, rows[:4], tok)
    for m in (model(), model('sequence_classification', num_labels=3), new_model(tok, arch='bert', head='sequence_classification', num_labels=1)):
        with pytest.raises(LmftError, match='a reward model reads'): reward_from_dls(dls, m)
        with pytest.raises(LmftError, match='a reward model reads'): reward_scores(m, tok, ['Who?'], ['Ada.'])

@pytest.mark.parametrize('name', ['hh_harmless_dev', 'dpo_en_demo_dev', 'llmbar_dev', 'pandalm_dev'])
def test_real_pairs(data, name):
    "All four shapes become pairs that share their prompt and end with the stop token, split by prompt"
    bad = []
    some = list(read_records(data/f'preference/{name}.jsonl', on_bad='skip', bad=bad))[:120]
    t = train_tokenizer([r['chosen'] for r in some], 800)
    train,valid = split_by_prompt(some, .2)
    asked = lambda rs: {str(r['prompt']) for r in rs}
    assert len(train)+len(valid)==len(some) and not asked(train)&asked(valid)
    pairs,n_long = pair_examples(some, t, 1024)
    assert len(pairs)>40 and len(pairs)+n_long==len(some)
    for c,r in pairs[:20]:
        start = [(e['labels']!=-100).nonzero()[0].item() for e in (c, r)]
        assert start[0]==start[1] and torch.equal(c['input_ids'][:start[0]], r['input_ids'][:start[0]])
        assert c['labels'][-1]==r['labels'][-1]==t.eos_token_id
        assert t.decode(c['labels'][start[0]:-1])!=t.decode(r['labels'][start[0]:-1])

def test_equal_answers_are_refused(data):
    broken = data/'broken/preference_chosen_equals_rejected.jsonl'
    with pytest.raises(BadRecord, match='rejected'): list(read_records(broken))
