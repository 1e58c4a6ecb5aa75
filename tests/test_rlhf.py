"PPO under what a cell cannot hold: other architectures, windows of micro-batches, references, log and saved policy"
import copy, json

import pytest
from lmft.core import LmftError, set_seed
import torch
from fastcore.test import test_close as close
from transformers import AutoModelForCausalLM

from lmft.models.several import disabled
from lmft.data.tokenizers import train_tokenizer
from lmft.train.callbacks import StepLog, mixed_precision
from lmft.train.checkpoints import weights_hash
from lmft.models.wrapper import HFModel
from lmft.models.parts import blocks_of
from lmft.models.methods import merge_adapter
from lmft.models.loading import new_model, save_model
from lmft.stages.ppo import ActorCritic
from lmft.stages.rlhf import gae, sample_rollouts, token_stats
from lmft.stages.ppo import ppo_from_prompts
from lmft.train.speed import checkpoint_blocks

from running import lines, metrics, run

texts = ['Left or right?', 'Left.', 'Right.', 'Where to, and which way first?', 'First left, then right.']

@pytest.fixture(scope='module')
def tok(): return train_tokenizer(texts*2, vocab_size=300)

def small(tok, arch='llama', seed=0):
    set_seed(seed)
    return new_model(tok, seq_len=64, arch=arch)

def asked(n): return [[dict(role='user', content=texts[3*(i%2)])] for i in range(n)]
def short(prompts, answers): return [-len(a)/10 for a in answers]
def quiet(learn, rounds=1, **kwargs):
    with learn.no_bar(), learn.no_logging(): learn.fit(rounds, **kwargs)
    return learn

def test_gae_is_the_sum_of_discounted_surprises():
    set_seed(0)
    for n in (1, 2, 7):
        r,v = torch.randn(2, n)
        delta = r+.9*torch.cat([v[1:], torch.zeros(1)])-v
        brute = [sum((.9*.8)**k*delta[t+k] for k in range(n-t)) for t in range(n)]
        close(gae(r, v, .9, .8), torch.stack(brute), eps=1e-5)

@pytest.mark.parametrize('arch', ['llama', 'gpt2', 'qwen3'])
@pytest.mark.parametrize('pad_is_end', [False, True])
def test_logps_are_those_of_one_answer_alone(tok, arch, pad_is_end):
    tok,model = copy.deepcopy(tok),small(tok, arch).eval()
    if pad_is_end: tok.pad_token = tok.eos_token
    rs = sample_rollouts(model, tok, asked(6), 8, bs=4)
    def alone(r):
        with torch.no_grad(): logps = model(r['input_ids'][None]).logits[0].log_softmax(-1)
        at = (r['labels']!=-100).nonzero()[:, 0]
        return logps[at-1, r['input_ids'][at]]
    truth = [alone(r) for r in rs]
    for kw in (dict(bs=1), dict(bs=6), dict(bs=4, left=True)):
        for (got,*_),want in zip(token_stats(HFModel(model), rs, tok.pad_token_id, **kw), truth): close(got, want, eps=1e-4)
    for (got,*_),want in zip(token_stats(ActorCritic(model), rs[::-1], tok.pad_token_id)[::-1], truth):
        close(got, want, eps=1e-4)

@pytest.mark.parametrize('method', ['lora', 'full', 'last:1', 'seq_adapter'])
def test_reference_stays_where_it_was(tok, method):
    start = small(tok)
    frozen,ids = copy.deepcopy(start).eval(),torch.tensor([tok(texts[3]).input_ids])
    learn = quiet(ppo_from_prompts(start, tok, asked(16), short, method, n=8, bs=8, max_new_tokens=6, lr=1e-2), 3)
    close(learn.rollouts.history[0]['kl'], 0., eps=1e-4)
    assert abs(learn.rollouts.history[-1]['kl'])>1e-2
    with torch.no_grad():
        want,now = frozen(ids).logits,learn.model.hf.eval()(ids).logits
        if learn.rollouts.ref_model: ref = learn.rollouts.ref_model(ids).logits
        else:
            with disabled(learn.model.hf) as base: ref = base(ids).logits
    close(ref, want, eps=1e-5)
    assert (now-want).abs().max()>1e-3

def test_window_of_micro_batches_trains_as_one_batch(tok):
    def weights(bs, n_acc):
        model = small(tok)
        set_seed(1)
        return quiet(ppo_from_prompts(model, tok, asked(16), short, 'full', n=16, bs=bs, n_acc=n_acc, max_new_tokens=6)).model
    a,b = (torch.cat([p.detach().flatten() for p in weights(*k).parameters()]) for k in ((8, 1), (2, 4)))
    close(a, b, eps=1e-4)

def test_blocks_computed_again_train_alike(tok):
    "With dropout in the model, which stays off; each training step computes a block once more, drawing answers does not"
    def trained(prepare):
        set_seed(0)
        policy = new_model(tok, seq_len=64, arch='gpt2', attn_pdrop=.3, resid_pdrop=.3, embd_pdrop=.3)
        learn = ppo_from_prompts(policy, tok, asked(16), short, 'lora', n=8, bs=8, max_new_tokens=6)
        prepare(learn.model.hf)
        calls = []
        next(blocks_of(learn.model.hf)[0].children()).register_forward_pre_hook(lambda *_: calls.append(torch.is_grad_enabled()))
        return weights_hash(quiet(learn, 2).model), sum(calls), learn.train_iter
    (plain,once,steps),(again,twice,_) = trained(lambda m: m),trained(checkpoint_blocks)
    assert plain==again and (once, twice)==(steps, 2*steps)

def test_each_pass_reads_every_rollout_once(tok):
    learn = ppo_from_prompts(small(tok), tok, asked(16), short, n=12, num_ppo_epochs=3, bs=4)
    order = learn.dls.train.get_idxs()
    passes = [order[k:k+12] for k in (0, 12, 24)]
    assert [sorted(p) for p in passes]==[list(range(12))]*3 and len(order)==36 and len(learn.dls.train)==9
    assert passes[0]!=passes[1]!=passes[2]

def test_cut_answers_pay_and_the_log_has_a_row_a_round(tok):
    log = StepLog(100)
    learn = ppo_from_prompts(small(tok), tok, asked(16), lambda ps, said: [1.]*len(ps), n=8, bs=8, max_new_tokens=2, missing_eos_penalty=3.,
                        cbs=log)
    quiet(learn, 2)
    assert len(learn.rollouts.history)==3 and len(log.history)==2
    assert {'reward', 'kl', 'entropy', 'length', 'clipped', 'loss', 'tokens'}<=set(log.history[0])
    for r in learn.rollouts.history: close(r['reward'], 1-3*(1-r['ended']), eps=1e-6)
    assert learn.rollouts.history[0]['ended']<1

def test_first_and_last_row_compare(tok):
    "The same prompts before and after, in the precision of the run"
    seen,amps = [],[]
    def noted(prompts, answers):
        seen.append([p[0]['content'] for p in prompts])
        amps.append(learn.model.amp)
        return [0.]*len(answers)
    prompts = [[dict(role='user', content=f'{texts[0]} {i}')] for i in range(40)]
    learn = ppo_from_prompts(small(tok), tok, prompts, noted, n=8, bs=8, max_new_tokens=4, cbs=mixed_precision('bf16'))
    quiet(learn, 2)
    assert seen[0]==seen[-1]!=seen[1] and len(seen)==3
    assert amps==[torch.bfloat16]*3 and learn.model.amp is None

def test_device_is_the_one_given(tok, monkeypatch):
    monkeypatch.setattr('lmft.stages.ppo.pick_device', lambda: pytest.fail('asked for none'))
    learn = ppo_from_prompts(small(tok), tok, asked(8), short, n=8, device=torch.device('cpu'))
    assert {p.device.type for p in learn.model.parameters()}=={'cpu'}=={learn.dls.train.device.type}

def test_gradual_begins_with_the_head(tok):
    start = small(tok)
    before = copy.deepcopy(start.state_dict())
    learn = quiet(ppo_from_prompts(start, tok, asked(8), short, 'gradual', n=8, num_ppo_epochs=1, bs=8, max_new_tokens=6, lr=1e-2))
    moved = {n for n,p in learn.model.hf.state_dict().items() if not p.equal(before[n])}
    assert moved=={'model.norm.weight', 'lm_head.weight'}

def test_policy_is_saved_as_any_other(tok, tmp_path):
    learn = quiet(ppo_from_prompts(small(tok), tok, asked(16), short, n=8, bs=8, max_new_tokens=4))
    ids = torch.tensor([tok(texts[3]).input_ids])
    merged,diff = merge_adapter(learn.model.hf, ids)
    assert diff['max_logit_diff']<1e-4
    save_model(merged, tok, tmp_path/'m')
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path/'m')
    close(loaded.eval()(ids).logits.detach(), merged(ids).logits.detach(), eps=1e-5)

def test_refusals(tok):
    for method in ('prompt', 'prefix'):
        with pytest.raises(LmftError, match='cannot stand'): ppo_from_prompts(small(tok), tok, asked(8), short, method, n=8)
    with pytest.raises(LmftError, match='writes no text'): ppo_from_prompts(small(tok, 'bert'), tok, asked(8), short, n=8)

@pytest.fixture(scope='module')
def asked_file(tok, tmp_path_factory):
    "A folder with a model, and prompts with their right answers"
    tmp = tmp_path_factory.mktemp('rl')
    save_model(small(tok), tok, tmp/'model')
    (tmp/'sums.jsonl').write_text('\n'.join(json.dumps(dict(prompt=f'Left or right? {i}', answer='Left.')) for i in range(64)))
    return tmp

def test_shell_with_verifiers(asked_file, tmp_path):
    "Two rewards with weights, GRPO as published, a run done again from its config.json, and what a record must hold"
    args = '--prompts', asked_file/'sums.jsonl', '--model', asked_file/'model', '--max_steps', 2, '--n', 8, '--max_new_tokens', 4
    run('ppo', *args, '--reward', 'answer', '--reward', 'format:L.*=.5', '--advantage', 'grpo', '--kl_in', 'loss', '--kl_estimator', 'k3', '--out', tmp_path/'a')
    rounds = lines(tmp_path/'a/rounds.jsonl')
    for r in rounds: close(r['score'], r['reward_answer']+.5*r['reward_format:L.*'], eps=1e-6)
    assert json.loads((tmp_path/'a/config.json').read_text())['reward']==['answer', 'format:L.*=.5']
    run('ppo', '--config', tmp_path/'a/config.json', '--out', tmp_path/'b')
    assert lines(tmp_path/'b/rounds.jsonl')==rounds
    (tmp_path/'bare.jsonl').write_text('\n'.join(json.dumps(dict(prompt=f'Who? {i}')) for i in range(8)))
    new = '--out', tmp_path/'new'
    assert 'right answer' in run('ppo', '--prompts', tmp_path/'bare.jsonl', *args[2:], '--reward', 'answer', *new, code=2)
    assert 'needs a reward' in run('ppo', *args, *new, code=2)
    assert 'no gradient' in run('ppo', *args, '--reward', 'answer', '--kl_in', 'loss', *new, code=2)
    assert not (tmp_path/'new').exists()

def test_shell_with_a_teacher(tok, asked_file, tmp_path):
    "On-policy distillation, and teachers that cannot be compared"
    args = '--prompts', asked_file/'sums.jsonl', '--model', asked_file/'model', '--n', 64, '--max_new_tokens', 4, '--advantage', 'distill', '--method', 'full'
    teacher = small(tok, seed=1)
    with torch.no_grad(): teacher.lm_head.weight *= 8                            # a new model gives all tokens nearly the same probability
    save_model(teacher, tok, tmp_path/'teacher')
    run('ppo', *args, '--teacher', tmp_path/'teacher', '--max_steps', 20, '--lr', 1e-3, '--out', tmp_path/'a')
    m = metrics(tmp_path/'a')
    assert 0<m['kl']<.7*m['kl_before'], m
    other = train_tokenizer(['Wer da?', 'Ich.']*4, vocab_size=270)
    save_model(new_model(other, seq_len=64), other, tmp_path/'other')
    assert 'other tokens' in run('ppo', *args, '--teacher', tmp_path/'other', '--out', tmp_path/'new', code=2)
    assert 'needs a teacher' in run('ppo', *args, '--out', tmp_path/'new', code=2)
    assert 'leave out the reward' in run('ppo', *args, '--teacher', tmp_path/'teacher', '--reward', 'answer', '--out', tmp_path/'new', code=2)
    assert not (tmp_path/'new').exists()

def test_losses_divide_by_what_they_say(tok):
    "The gradient of a round is that of the written-out sums, for each way to count the length of answers"
    def grad(norm):
        model = small(tok)
        set_seed(0)
        learn = ppo_from_prompts(model, tok, asked(16), short, 'full', n=8, bs=8, group=4, advantage='rloo', length_norm=norm, max_new_tokens=6, beta=0., num_ppo_epochs=1, lr=1e-12)
        learn.clip_norm.max_norm = 1e9
        quiet(learn, 1)
        rs = learn.dls.train.dataset
        sums = [-(r['advantages']*token_logps_of(model, r)).sum() for r in rs]
        n = torch.tensor([len(r['logps']) for r in rs]).float()
        want = dict(constant=sum(sums)/(8*6), token=sum(sums)/n.sum(), answer=sum(s/k for s,k in zip(sums, n))/8)[norm]
        own = torch.autograd.grad(want, list(model.parameters()), allow_unused=True)
        return torch.cat([g.flatten() for g in own if g is not None]).norm(), learn.grad_norm
    def token_logps_of(model, r):
        at = (r['labels']!=-100).nonzero()[:, 0]
        return model.eval()(r['input_ids'][None]).logits[0].log_softmax(-1)[at-1, r['input_ids'][at]]
    for norm in ('constant', 'token', 'answer'):
        want,got = grad(norm)
        close(want, got, eps=2e-3)
        assert want>1e-3
