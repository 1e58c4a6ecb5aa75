"Every family of models × stage × method: right, held against 🤗 by hand, or rejected with a reason; `table` makes the page of it"
import copy, re
from functools import lru_cache
from tempfile import mkdtemp

import pytest, torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import (AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM, AutoModelForSeq2SeqLM, GenerationConfig,
                          PreTrainedTokenizerFast)
from transformers.utils import logging

import lmft.generation
import lmft.models.adapters
from lmft.core import LmftError
from lmft.data.loaders import lm_dls, make_batch
from lmft.generation import left_pad, sample_ids
from lmft.models.loading import load_model
from lmft.models.methods import methods, trainable
from lmft.models.parts import base_of, is_causal
from lmft.models.wrapper import HFModel, can_pack, choose_packing
from lmft.train.learner import lm_learner

V = 96
wide = dict(hidden_size=48, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64, max_position_embeddings=256)
gqa = dict(wide, num_key_value_heads=2)
gpt = dict(n_embd=48, n_layer=2, n_head=4, n_positions=256)
experts = dict(num_experts=4, num_experts_per_tok=2, moe_intermediate_size=32)
ssm = dict(mamba_n_heads=8, mamba_d_head=12, mamba_d_state=8, mamba_n_groups=1, mamba_chunk_size=16)
local = dict(sliding_window=16, layer_types=['sliding_attention', 'full_attention'])
qkvo,neox_roles = 'q_proj k_proj v_proj o_proj','query_key_value dense'
# name: (🤗's model_type, settings, leaf names of attention's matrices, final norm or None, can it pack)
archs = dict(
    llama=('llama', dict(gqa, tie_word_embeddings=True), qkvo, 'norm', True),
    qwen2=('qwen2', gqa, qkvo, 'norm', True),
    qwen3=('qwen3', dict(gqa, head_dim=16), qkvo, 'norm', True),
    gemma2=('gemma2', dict(gqa, head_dim=12, sliding_window=16, query_pre_attn_scalar=12), qkvo, 'norm', True),
    gemma3=('gemma3_text', dict(gqa, head_dim=12, query_pre_attn_scalar=12, **local), qkvo, 'norm', True),
    phi=('phi', dict(wide, partial_rotary_factor=.5), 'q_proj k_proj v_proj dense', 'final_layernorm', True),
    mistral=('mistral', dict(gqa, sliding_window=16), qkvo, 'norm', True),
    gpt2=('gpt2', gpt, 'c_attn c_proj', 'ln_f', True),
    gpt_neox=('gpt_neox', wide, neox_roles, 'final_layer_norm', True),
    opt=('opt', dict(wide, ffn_dim=64, word_embed_proj_dim=48), 'q_proj k_proj v_proj out_proj', 'final_layer_norm', False),
    bloom=('bloom', dict(hidden_size=48, n_layer=2, n_head=4), neox_roles, 'ln_f', False),
    falcon=('falcon', dict(wide, alibi=False, multi_query=True, new_decoder_architecture=False, bias=False), neox_roles, 'ln_f', False),
    falcon_alibi=('falcon', dict(wide, alibi=True, multi_query=False, parallel_attn=False, bias=True), neox_roles, 'ln_f', False),
    mpt=('mpt', dict(d_model=48, n_heads=4, n_layers=2, max_seq_len=256, expansion_ratio=2), 'Wqkv out_proj', 'norm_f', False),
    mamba=('mamba', dict(hidden_size=48, num_hidden_layers=2, state_size=8), 'in_proj', 'norm_f', False),
    bert=('bert', wide, 'query key value dense', None, True),
    roberta=('roberta', wide, 'query key value dense', None, True),
    electra=('electra', dict(wide, embedding_size=32), 'query key value dense', None, True),
    albert=('albert', dict(wide, embedding_size=32), 'query key value dense', None, True),
    distilbert=('distilbert', dict(dim=48, n_layers=2, n_heads=4, hidden_dim=64, max_position_embeddings=256),
                'q_lin k_lin v_lin out_lin', None, True),
    deberta=('deberta-v2', dict(wide, relative_attention=True, position_buckets=32, pos_att_type=['p2c', 'c2p'], share_att_key=True,
                                norm_rel_ebd='layer_norm', position_biased_input=False, type_vocab_size=0),
             'query_proj key_proj value_proj dense', None, False),
    modernbert=('modernbert', dict(wide, local_attention=16, global_attn_every_n_layers=2), 'Wqkv Wo', 'final_norm', False),
    t5=('t5', dict(d_model=48, num_layers=2, num_heads=4, d_kv=12, d_ff=64), 'q k v o', 'final_layer_norm', False),
    qwen3_moe=('qwen3_moe', dict(gqa, head_dim=12, **experts), qkvo, 'norm', True),
    gpt_oss=('gpt_oss', dict(gqa, head_dim=12, num_local_experts=4, num_experts_per_tok=2, **local), qkvo, 'norm', False),
    olmo2=('olmo2', gqa, qkvo, 'norm', True),
    olmo3=('olmo3', dict(gqa, **local), qkvo, 'norm', True),
    granite_hybrid=('granitemoehybrid', dict(gqa, layer_types=['mamba', 'attention'], num_local_experts=4, num_experts_per_tok=2,
                                             shared_intermediate_size=32, **ssm), qkvo, 'norm', False),
    jamba=('jamba', dict(gqa, attn_layer_period=2, attn_layer_offset=1, expert_layer_period=2, expert_layer_offset=1, num_experts=4,
                         mamba_d_state=8, mamba_dt_rank=4), qkvo, 'final_layernorm', False),
    falcon_h1=('falcon_h1', dict(gqa, head_dim=12, mamba_d_ssm=96, **ssm), qkvo, 'final_layernorm', False),
    bamba=('bamba', dict(gqa, attn_layer_indices=[1], **ssm), qkvo, 'final_layernorm', False))
hows = 'full', 'last:1', 'head', 'lora:2', 'seq_adapter:4', 'par_adapter:4', 'prefix:3', 'prompt:3'
stage_heads = dict(text='causal', masked='masked', classes='sequence_classification', entities='token_classification', answers='question_answering')

def base_model(name):
    "A tiny model of random weights that are large enough for masks, positions and windows to show"
    kind,kw,*_ = archs[name]
    ids = dict(vocab_size=V, pad_token_id=0, eos_token_id=1, bos_token_id=None)
    if kind=='t5': ids['decoder_start_token_id'] = 0
    if kind=='modernbert': ids.update(cls_token_id=2, sep_token_id=3)
    torch.manual_seed(0)
    auto = AutoModelForSeq2SeqLM if kind=='t5' else AutoModelForCausalLM if archs[name][3] and kind!='modernbert' else AutoModelForMaskedLM
    model = auto.from_config(AutoConfig.for_model(kind, **ids | kw))
    with torch.no_grad():
        for n,p in model.named_parameters():
            if p.ndim==2 and 'A_log' not in n and p.std()<.06: p.mul_(5)
    return model

def documents(head):
    "Three documents, two of them longer than any window here, with labels at the tokens themselves"
    g,docs = torch.Generator().manual_seed(1),[]
    for n in (41, 23, 9):
        ids = torch.cat([torch.randint(4, V, (n-1,), generator=g), torch.tensor([1])])
        labels = ids if head in ('causal', 'masked') else torch.randint(3, (n,), generator=g)
        if head=='sequence_classification': labels = labels.where(torch.arange(n)==n-1, -100)
        elif head=='masked': labels = labels.where(torch.rand(n, generator=g)<.4, -100)
        docs.append(dict(input_ids=ids, labels=labels))
    return docs
places = [(5, 9), (0, 22), (7, 7)]                                          # where the answers stand, first and last token

def by_hand(model, docs, head):
    "Mean cross-entropy through 🤗's or peft's forward alone, one document at a time"
    total,n = 0.,0
    for d,(s,e) in zip(docs, places):
        ids,T = d['input_ids'][None],len(d['input_ids'])
        out = model(input_ids=ids, attention_mask=torch.ones_like(ids))
        if head=='question_answering': logits,y = torch.cat([out.start_logits, out.end_logits])[:, -T:],torch.tensor([s, e])
        elif head=='sequence_classification': logits,y = out.logits,d['labels'][-1:]
        elif head=='causal': logits,y = out.logits[0, -T:-1],d['labels'][1:]
        else: logits,y = out.logits[0, -T:],d['labels']
        total,n = total+F.cross_entropy(logits, y, reduction='sum'),n+(y!=-100).sum()
    return total/n

def ours(model, docs, head, packed=False):
    "The same by lmft: one batch, padded or packed"
    inputs,y = make_batch([docs] if packed else [[d] for d in docs], 0, packed=packed, shift=head=='causal')
    if head=='question_answering': y = torch.tensor(places).flatten()
    return F.cross_entropy(HFModel(model)(inputs), y)

head_names = r'(^|\.)(lm_head|score|classifier|pre_classifier|qa_outputs|pooler|classification_head|embed_out|cls|predictions|generator_\w+|' \
             r'vocab_\w+|decoder\.(weight|bias)|head|final_logits_bias)(\.|$)'
def may_move(name, how, model, head):
    "The names of the weights that a method may move, from the table above and not from lmft"
    _,_,_,norm,_ = archs[name]
    method = how.partition(':')[0]
    own = dict(lora='lora_', seq_adapter='bottleneck_', par_adapter='bottleneck_', prefix='prompt_encoder', prompt='prompt_encoder')
    def _ok(n):
        is_head = re.search(head_names, n) and not ('.decoder.' in n and 'layer' in n)
        if method=='full': return True
        if method in own: return own[method] in n or ('modules_to_save' in n and head!='causal')
        if method=='head': return bool(is_head)
        last = 'albert_layer_groups.0.' if name=='albert' else 'decoder.block.1.' if name=='t5' and not hasattr(model, 'transformer') else '.1.'
        return bool(is_head or f'{last}' in n or norm and re.search(rf'(^|\.){norm}\.', n))
    return {n for n,_ in model.named_parameters() if _ok(n)}

def stepped(model, docs, head):
    "Names of the weights that one step moves, and of those with a gradient in 🤗's own backward pass"
    model.zero_grad()
    by_hand(model, docs, head).backward()
    felt = {n for n,p in model.named_parameters() if p.grad is not None and p.grad.abs().max()>1e-6}   # a bias of all places is felt by rounding alone
    model.zero_grad()
    ours(model, docs, head).backward()
    before = {n: p.detach().clone() for n,p in model.named_parameters()}
    torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1.).step()
    return {n for n,p in model.named_parameters() if not torch.equal(p, before[n])},felt

def check_method(name, how, model, head):
    "One cell of the table: the loss is 🤗's, padded and packed; a step moves the method's weights, all that feel the loss"
    docs,model = documents(head),trainable(copy.deepcopy(model), how).eval()
    torch.manual_seed(0)
    with torch.no_grad():
        for n,p in model.named_parameters():                                # adapters begin as nothing: let them matter
            if p.requires_grad and re.search('lora_B|bottleneck_up', n): torch.nn.init.normal_(p, std=.3)
    with torch.no_grad():
        truth = by_hand(model, docs, head)
        assert abs(ours(model, docs, head)-truth)<2e-4*truth, 'padded'
        if can_pack(model): assert abs(ours(model, docs, head, packed=True)-truth)<2e-4*truth, 'packed'
    moved,felt = stepped(model, docs, head)
    allowed = may_move(name, how, model, head)
    assert moved and moved<=allowed, (how, sorted(moved-allowed)[:5])
    assert {n for n in felt if n in allowed}<=moved | tied(model), (how, sorted(felt & allowed-moved)[:5])
    return model

def tied(model):
    "Names of the embeddings, which `head` and `last` leave alone where a head is tied to them"
    words = base_of(model).get_input_embeddings().weight
    return {n for n,p in model.named_parameters(remove_duplicate=False) if p is words}

@lru_cache(maxsize=None)
def results(name):
    "Stage → method → '' or why it is rejected; everything else is an error"
    logging.set_verbosity_error()
    base,folder = base_model(name),mkdtemp()
    base.save_pretrained(folder)
    out = {}
    for stage,head in stage_heads.items():
        torch.manual_seed(0)
        try: model = load_model(folder, head, **({} if head in ('causal', 'masked', 'question_answering') else dict(num_labels=3)))
        except LmftError as e:
            out[stage] = dict.fromkeys(hows, str(e).replace(folder, '').lstrip(': '))
            continue
        out[stage] = {how: tried(name, how, model, head) for how in hows}
    return out

def tried(name, how, model, head):
    try: check_method(name, how, model, head)
    except LmftError as e: return str(e)
    return ''

def table():
    "A dict a family and stage: what works, what is rejected and why"
    rows = []
    for name,(kind,*_) in archs.items():
        base = base_model(name)
        for stage,cells in results(name).items():
            if len({*cells.values()})==1 and (why := next(iter(cells.values()))): rows.append(dict(family=name, stage=stage, why=why))
            else: rows.append(dict(family=name, stage=stage, causal=is_causal(base), packs=can_pack(base), **cells))
    return rows

@pytest.mark.parametrize('name', [n for n in archs if n!='t5' and is_causal(base_model(n))])
def test_generation_in_parts(name, monkeypatch):
    "Answers that have ended leave the batch; the others are those of 🤗 in one call"
    model,g = base_model(name).eval(),torch.Generator().manual_seed(0)
    rows = [torch.randint(4, V, (int(n),), generator=g).tolist() for n in torch.randint(2, 30, (16,), generator=g)]
    stops = torch.randperm(V, generator=g)[:9].tolist()
    config = GenerationConfig(max_new_tokens=24, do_sample=False, pad_token_id=0, eos_token_id=stops)
    tok = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel({'<pad>': 0}, '<pad>')), pad_token='<pad>')
    batch,sizes = left_pad(rows, tok, 'cpu'),[]
    with torch.no_grad(): whole = model.generate(**batch, generation_config=config)[:, batch['input_ids'].shape[1]:].tolist()
    monkeypatch.setattr(lmft.generation, '_part', 4)
    with model.register_forward_pre_hook(lambda m,args,kwargs: sizes.append(len(kwargs['input_ids'])), with_kwargs=True):
        assert sample_ids(model, tok, rows, config)==whole
    left = whole
    for n in range(4, len(whole[0]), 4):          # a tenth of them has ended: they leave
        going = [r for r in left if not {*r[:n]} & {*stops}]
        if going and len(going)<=.9*len(left): left = going
    assert sizes[-1]==(len(rows) if name=='mamba' else len(left))             # its state is no cache, so it stays whole

def test_enough(): assert len(archs)>=26 and {h.partition(':')[0] for h in hows} | {'gradual'}=={*methods}

@pytest.mark.parametrize('name', archs)
def test_architecture(name):
    "What is rejected, and for which reasons it may be"
    reasons = dict(head='is tied to the embeddings', par_adapter='has no feed-forward', prefix='PREFIX_TUNING does not go with|no attention',
                   prompt='PROMPT_TUNING does not go with')
    for stage,cells in results(name).items():
        if len({*cells.values()})==1 and cells['full']:                   # there is no such model, or it cannot write
            assert re.search('no .* can be loaded: Unrecognized configuration|looks to both sides', cells['full'])
            continue
        for how,why in cells.items():
            method = how.partition(':')[0]
            assert '\n' not in why and (not why or method in reasons and re.search(reasons[method], why)), (stage, how, why)
        assert not cells['head'] or stage in ('text', 'masked')
        assert not cells['par_adapter:4'] or name=='mamba'

@pytest.mark.parametrize('name', archs)
def test_parts(name):
    "Causality, packing and the matrices of attention are those of the table at the top, which nobody computed"
    kind,_,leaves,_,packs = archs[name]
    model,masked = base_model(name),'albert bert deberta-v2 distilbert electra modernbert roberta t5'.split()
    assert is_causal(model)==(kind not in masked) and can_pack(model)==packs
    lora = trainable(model, 'lora')
    assert {n.split('.')[-4] for n,_ in lora.named_parameters() if 'lora_A' in n}=={*leaves.split()}
    assert sum(lora.matched.values())==sum('lora_A' in n for n,_ in lora.named_parameters())

@pytest.mark.parametrize('name', archs)
def test_packed_loader(name):
    "A packed loader is rejected by the learner where documents would see each other, and builders pad there"
    model,docs = base_model(name),documents('causal')*3
    if not is_causal(model): return
    class Tok: pad_token_id,eos_token_id,sep_token_id = 0,1,None
    def _learner(packed): return lm_learner(lm_dls(docs, docs, Tok, 96, bs=2, packed=packed, device='cpu'), model)
    if can_pack(model): return _learner(True)
    with pytest.raises(LmftError, match='would see each other'): _learner(True)
    assert choose_packing(model) is False
    _learner(False)
