"What is sampled, what is saved, and what is loaded again: against 🤗, peft and counts by hand"
import io, json, random
from contextlib import redirect_stderr

import pytest, torch
from peft import AutoPeftModelForSequenceClassification, LoraConfig, get_peft_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (AutoConfig, AutoModelForCausalLM, AutoModelForQuestionAnswering, AutoModelForSequenceClassification, AutoTokenizer,
                          GenerationConfig, PreTrainedTokenizerFast, pipeline)

import lmft.models.adapters
from lmft.cli import main
from lmft.core import LmftError, set_seed
from lmft.data.tokenizers import load_tokenizer, train_tokenizer
from lmft.generation import chat, encode_prompt, generate, stream
from lmft.models.loading import stop_ids
from lmft.models.loading import load_model, new_model, save_model, saved_head, stored_dtype
from lmft.models.methods import merge_adapter, trainable
from lmft.models.wrapper import HFModel
from lmft.stages.builders import load_learner, sft_learner
from lmft.stages.extraction import predict_tags
from lmft.stages.finetuning import classify_examples, predict
from lmft.stages.classification import label_config
from lmft.stages.prediction import predict_records
from lmft.stages.preferences import reward_scores
from lmft.stages.rlhf import sample_rollouts, token_stats

texts = ['The cat sat on the mat.', 'The dog wagged its tail.', 'I like ice cream.', 'I have a cat. It loves to purr.']
tok = train_tokenizer(texts*3, 400)

def only_end(template=tok.chat_template):
    "A byte-level tokenizer whose only special token ends texts, as GPT-2's"
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer,bpe.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False),decoders.ByteLevel()
    bpe.train_from_iterator(texts*5, trainers.BpeTrainer(vocab_size=330, special_tokens=['<|end|>'], show_progress=False,
                                                         initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    return PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token='<|end|>', chat_template=template)

def run(*argv, code=0):
    err = io.StringIO()
    with redirect_stderr(err): assert main([*map(str, argv), '--device', 'cpu'])==code, err.getvalue()
    return err.getvalue()

def lines(path, rows):
    path.write_text('\n'.join(map(json.dumps, rows)))
    return path

leaks = [dict(repetition_penalty=1.3, no_repeat_ngram_size=2, min_new_tokens=5), dict(num_beams=3, stop_strings=['a']),
         dict(min_p=.1, top_k=3, typical_p=.5, temperature=.5, do_sample=True, num_return_sequences=2)]

def test_settings_do_not_leak():
    set_seed(0)
    model = new_model(tok, seq_len=64, initializer_range=.1).eval()
    ids = encode_prompt('The cat', tok)
    for _ in range(6):
        with torch.no_grad(): new = model(torch.tensor([ids])).logits[0, -1].argmax().item()
        if new in stop_ids(model, tok): break
        ids.append(new)
    for settings in leaks:
        model.generation_config = GenerationConfig(**settings)
        set_seed(1)
        rs = sample_rollouts(model, tok, ['The', 'The dog']*200, max_new_tokens=6, bs=400)
        v = torch.cat([p+h for p,h in token_stats(HFModel(model), rs, tok.pad_token_id, bs=200)])
        assert v.mean().abs()<3*v.std()/len(v)**.5, settings
        greedy = generate(model, tok, ['The cat'], max_new_tokens=6)[0]
        assert 'The cat'+greedy==tok.decode(ids) and ''.join(stream(model, tok, 'The cat', max_new_tokens=6))==greedy
        assert all(getattr(model.generation_config, k)==x for k,x in settings.items())

chatml = ("{% for m in messages %}{{ '<|im_start|>'+m.role+'\n'+m.content+'<|im_end|>\n' }}{% endfor %}"
          "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}")

@pytest.fixture(scope='module')
def chats(tmp_path_factory):
    d = tmp_path_factory.mktemp('chats')
    t = only_end(chatml)
    t.add_special_tokens(dict(extra_special_tokens=['<|im_start|>', '<|im_end|>']))
    set_seed(0)
    new_model(t, seq_len=128).save_pretrained(d/'base')
    t.save_pretrained(d/'base')
    lines(d/'g.jsonl', [dict(instruction=f'Who {w}?', output='The cat.') for w in ('sat', 'purrs', 'has a mat', 'is a dog')*10])
    run('sft', '--data', d/'g.jsonl', '--model', d/'base', '--max_steps', 40, '--bs', 8, '--lr', 3e-3, '--out', d/'o')
    return d

def test_stop_token_of_the_template(chats):
    folder = chats/'o'/'model'
    model,t = load_model(folder),load_tokenizer(folder)
    end = t.convert_tokens_to_ids('<|im_end|>')
    assert t.eos_token=='<|end|>' and end in stop_ids(model, t)
    assert chat(model, t, [dict(role='user', content='Who sat?')], max_new_tokens=40)=='The cat.'
    plain,vanilla = AutoTokenizer.from_pretrained(folder),AutoModelForCausalLM.from_pretrained(folder)
    assert set(vanilla.generation_config.eos_token_id)=={t.eos_token_id, end}
    asks = [[dict(role='user', content=f'Who {w}?')] for w in ('sat', 'purrs')*4]
    for side in ('left', 'right'):
        plain.padding_side = side
        pipe = pipeline('text-generation', model=str(folder), tokenizer=plain)
        for bs in (1, 8):
            said = [x[0]['generated_text'][-1]['content'] for x in pipe(asks, batch_size=bs, max_new_tokens=20)]
            assert said==generate(model, t, asks, max_new_tokens=20)

@pytest.mark.parametrize('arch,method', [('llama', 'full'), ('llama', 'lora:4'), ('gpt2', 'full')])
def test_reward_model_elsewhere(tmp_path, arch, method):
    "Stop token and pad are one in the base: 🤗 would read the score one token early"
    t = only_end()
    set_seed(0)
    base = new_model(t, arch=arch, seq_len=128, initializer_range=.1)
    base.config.pad_token_id = base.generation_config.pad_token_id = None
    base.save_pretrained(tmp_path/'base')
    t.save_pretrained(tmp_path/'base')
    rows = [dict(prompt=f'{x} {i}?', chosen=x[:6+i], rejected='No.') for i in range(8) for x in texts]
    lines(tmp_path/'p.jsonl', rows)
    run('reward', '--data', tmp_path/'p.jsonl', '--model', tmp_path/'base', '--out', tmp_path/'o', '--max_steps', 3, '--method', method)
    folder = final = tmp_path/'o'/'model'
    model,own = load_model(folder, 'sequence_classification'),load_tokenizer(folder)
    asks = [[r[k] for r in rows[:8]] for k in ('prompt', 'chosen')]
    ours = reward_scores(model, own, *asks).flatten()
    loaded = []
    if method!='full':
        config = AutoConfig.from_pretrained(folder, subfolder='tuned')
        loaded += [AutoModelForSequenceClassification.from_pretrained(folder, config=config),
                   AutoPeftModelForSequenceClassification.from_pretrained(folder, config=None, num_labels=1)]
        loaded[1].config.pad_token_id = config.pad_token_id
        run('merge', '--model', tmp_path/'o', '--out', tmp_path/'m')
        final = tmp_path/'m'/'model'
    loaded.append(AutoModelForSequenceClassification.from_pretrained(final))
    plain = AutoTokenizer.from_pretrained(final)
    full = [plain.apply_chat_template([dict(role='user', content=p), dict(role='assistant', content=a)], tokenize=False)
            for p,a in zip(*asks)]
    for side in ('right', 'left') if arch=='llama' else ('right',):             # 🤗 counts GPT-2's positions from the padding
        plain.padding_side = side
        batch = plain(full, padding=True, return_tensors='pt')
        with torch.no_grad(): scores = [m.eval()(**batch).logits.flatten() for m in loaded]
        assert max((s-ours).abs().max() for s in scores)<1e-5

@pytest.mark.parametrize('arch', ['bert', 'llama'])
def test_classifier_elsewhere(tmp_path, arch):
    "An adapter keeps its labels, merges with its head, and a pipeline gives the same probabilities"
    set_seed(0)
    save_model(new_model(tok, arch=arch, seq_len=64, initializer_range=.1), tok, tmp_path/'base')
    names = label_config(['mid', 'neg', 'pos'])
    model = trainable(load_model(tmp_path/'base', 'sequence_classification', **names), 'lora:4')
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad: p.add_(torch.randn_like(p)*.1)
    save_model(model, tok, tmp_path/'a')
    (tmp_path/'any').touch()                                                   # others may read what they may read of any file
    assert {f.stat().st_mode for f in tmp_path.rglob('*.safetensors')}=={(tmp_path/'any').stat().st_mode}
    assert saved_head(tmp_path/'a')=='sequence_classification' and not (tmp_path/'a'/'config.json').exists()
    again = load_model(tmp_path/'a', 'sequence_classification')
    assert again.get_base_model().config.label2id==names['label2id']
    ours = torch.stack([v[0] for v in predict(again, tok, classify_examples([dict(text=t) for t in texts], tok, again))]).softmax(-1)
    with pytest.raises(LmftError, match="head='sequence_classification'"): load_model(tmp_path/'a', 'token_classification')
    config = AutoConfig.from_pretrained(tmp_path/'a', subfolder='tuned')
    vanilla = AutoModelForSequenceClassification.from_pretrained(tmp_path/'a', config=config)
    merged,report = merge_adapter(again, torch.randint(300, (4, 16)))
    save_model(merged, tok, tmp_path/'m')
    assert report['max_logit_diff']<1e-4 and abs(report['kl'])<1e-6
    for m in (vanilla, str(tmp_path/'m')):
        pipe = pipeline('text-classification', model=m, tokenizer=AutoTokenizer.from_pretrained(tmp_path/'m'), top_k=None)
        for bs in (1, 4):
            for row,p in zip(pipe(texts, batch_size=bs), ours):
                for x in row: assert x['score']==pytest.approx(p[names['label2id'][x['label']]].item(), abs=1e-5)

def test_other_base_and_full_on_an_adapter(tmp_path):
    set_seed(0)
    save_model(new_model(tok, seq_len=64), tok, tmp_path/'base')
    save_model(trainable(load_model(tmp_path/'base'), 'lora'), tok, tmp_path/'a')
    assert load_model(tmp_path/'a')
    for method in ('full', 'last:1', 'lora'):
        with pytest.raises(LmftError, match='adapter already'): trainable(load_model(tmp_path/'a'), method)
    with pytest.raises(LmftError, match='merge'): load_model(tmp_path/'a', 'sequence_classification', num_labels=1)
    for arch in ('qwen3', 'llama'):
        set_seed(5)
        save_model(new_model(tok, arch=arch, seq_len=64), tok, tmp_path/'base')
        with pytest.raises(LmftError, match=f'llama model of .*{arch} model'): load_model(tmp_path/'a')

@pytest.mark.parametrize('extra', [1, -40, 7])
def test_embedding_and_vocabulary_differ(tmp_path, extra):
    "A pad token without a vector, a vocabulary that is larger than the embedding, and a smaller one"
    t = only_end()
    n = len(t)
    t.add_special_tokens(dict(pad_token='<fill>'))
    set_seed(0)
    new_model(t, seq_len=64, vocab_size=n+extra-1, pad_token_id=None).save_pretrained(tmp_path/'b')
    t.save_pretrained(tmp_path/'b')
    if extra<0:
        with pytest.raises(LmftError, match='resize_token_embeddings'): load_tokenizer(tmp_path/'b')
        return
    loaded = load_tokenizer(tmp_path/'b')
    assert loaded.pad_token_id<n+extra-1
    assert len(generate(load_model(tmp_path/'b'), loaded, ['The', 'The cat sat'], max_new_tokens=4))==2

@pytest.mark.parametrize('sep', [True, False])
def test_no_end_token(tmp_path, sep):
    vocab = {w: i for i,w in enumerate(['[PAD]', '[UNK]', '[CLS]', '[SEP]', 'the', 'cat', 'sat', '##s', '.'])}
    pieces = Tokenizer(models.WordPiece(vocab, unk_token='[UNK]'))
    pieces.pre_tokenizer,pieces.decoder = pre_tokenizers.BertPreTokenizer(),decoders.WordPiece()
    t = PreTrainedTokenizerFast(tokenizer_object=pieces, unk_token='[UNK]', pad_token='[PAD]', **(dict(sep_token='[SEP]') if sep else {}))
    new_model(t, arch='gpt2', seq_len=64).save_pretrained(tmp_path/'b')
    t.save_pretrained(tmp_path/'b')
    data = lines(tmp_path/'t.jsonl', [dict(text='the cat sat . '*(1+i%4)) for i in range(30)])
    args = 'pretrain', '--data', data, '--model', tmp_path/'b', '--max_steps', 2, '--seq_len', 32, '--out', tmp_path/'o'
    err = run(*args, code=0 if sep else 2)
    assert sep or 'no EOS token' in err and err.count('\n')==1

def test_entities_elsewhere(tmp_path):
    "🤗's pipeline gives the first token of each word the tag that lmft gives the word, one text at a time and four"
    set_seed(3)
    names = label_config(['O', 'B-PER', 'I-PER'])
    save_model(new_model(tok, arch='bert', head='token_classification', seq_len=64, initializer_range=.2, **names), tok, tmp_path/'m')
    model,t = load_model(tmp_path/'m', 'token_classification'),load_tokenizer(tmp_path/'m')
    tags = predict_tags(model, t, [text.split() for text in texts])
    pipe = pipeline('token-classification', model=str(tmp_path/'m'), tokenizer=AutoTokenizer.from_pretrained(tmp_path/'m'), ignore_labels=[])
    assert {'O', 'B-PER'}<={y for ys in tags for y in ys}
    for bs in (1, 4):
        for text,ys,found in zip(texts, tags, pipe(texts, batch_size=bs)):
            starts = [len(' '.join([*text.split()[:k], ''])) for k in range(len(ys))]
            assert ys==[next(e['entity'] for e in found if e['end']>start) for start in starts]

def test_answers_elsewhere(tmp_path):
    "🤗 has no pipeline for questions any more: the span by hand from its own model gives the same text"
    set_seed(2)
    save_model(new_model(tok, arch='bert', head='question_answering', seq_len=64, initializer_range=.2), tok, tmp_path/'m')
    model,t = load_model(tmp_path/'m', 'question_answering'),load_tokenizer(tmp_path/'m')
    plain,vanilla = AutoTokenizer.from_pretrained(tmp_path/'m'),AutoModelForQuestionAnswering.from_pretrained(tmp_path/'m').eval()
    for context in texts:
        r = dict(context=context, question='What is it?')
        enc = plain(r['question'], context, return_tensors='pt', return_offsets_mapping=True)
        offsets,sides = enc.pop('offset_mapping')[0].tolist(),enc.sequence_ids()
        with torch.no_grad(): out = vanilla(**enc)
        inside = [i for i,s in enumerate(sides) if s==1]
        a,b = max(((i, j) for i in inside for j in inside if i<=j<i+30), key=lambda p: (out.start_logits[0, p[0]]+out.end_logits[0, p[1]]).item())
        assert predict_records(model, t, [r])[0]['answer'].strip()==context[offsets[a][0]:offsets[b][1]].strip()

def test_named_template_last_turn_and_trl(tmp_path):
    "A base without a template gets a named one; `--turns last` trains one answer of a talk; TRL goes on from the folder"
    def turn(role, text): return dict(role=role, content=text)
    talk = [turn('user', 'The cat?'), turn('assistant', 'I like ice cream.'), turn('user', 'The dog?'), turn('assistant', 'The dog wagged its tail.')]
    data = lines(tmp_path/'d.jsonl', [dict(messages=[turn('user', f'{i}?'), *talk[1:]]) for i in range(20)])
    set_seed(0)
    t = only_end(None)
    save_model(new_model(t, seq_len=128), t, tmp_path/'base')
    args = 'sft', '--data', data, '--model', tmp_path/'base', '--max_steps', 2, '--seq_len', 100
    assert '--chat_template' in run(*args, '--out', tmp_path/'none', code=2)
    answers = [len(t(f' {m["content"]}').input_ids)+1 for m in talk[1::2]]
    for turns,n in (('all', sum(answers)), ('last', answers[1])):
        run(*args, '--out', tmp_path/turns, '--chat_template', 'plain', '--turns', turns)
        learn = sft_learner(data, tmp_path/'base', chat_template='plain', turns=turns)
        assert {(e['labels']!=-100).sum().item() for e, in learn.dls.train.dataset}=={n}
    assert 'no such chat template' in run(*args, '--out', tmp_path/'none', '--chat_template', 'nonsense', code=2)
    assert not (tmp_path/'none').exists()
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer
    saved = AutoTokenizer.from_pretrained(tmp_path/'last/model')
    assert saved.apply_chat_template(talk[:1], tokenize=False, add_generation_prompt=True).endswith('User: The cat?\nAssistant:')
    trainer = SFTTrainer(str(tmp_path/'last/model'), SFTConfig(str(tmp_path/'trl'), max_steps=1, use_cpu=True, bf16=False, report_to='none', disable_tqdm=True),
                         train_dataset=Dataset.from_list([json.loads(l) for l in data.read_text().splitlines()]), processing_class=saved)
    assert trainer.train().training_loss<8

def half_base(folder, arch='llama', head=None, **kwargs):
    "A model in bfloat16 on disk, and its tokenizer"
    tok = train_tokenizer(['one two three four five']*9, 300)
    set_seed(0)
    save_model(new_model(tok, arch=arch, head=head, **kwargs).to(torch.bfloat16), tok, folder)
    return folder, tok

asks = [dict(prompt=f'one {i}', completion=' two') for i in range(16)]

@pytest.mark.parametrize('method', ['full', 'last:1', 'lora', 'seq_adapter', 'par_adapter', 'prefix', 'prompt'])
def test_a_checkpoint_in_bfloat16(tmp_path, method):
    "Trained in float32, saved as it came or as an adapter, opened in bfloat16, and it writes"
    base,_ = half_base(tmp_path/'base')
    learn = sft_learner(asks, base, method=method, seq_len=16)
    assert learn.hf.dtype==torch.float32
    learn.fit_cos(steps=2)
    again = load_learner(learn.save(tmp_path/'out'))
    assert {p.dtype for n,p in again.hf.named_parameters() if 'embed_tokens' in n}=={torch.bfloat16}
    assert isinstance(again.generate('one two', max_new_tokens=3), str)
    if method=='full':
        config = json.loads((tmp_path/'out/config.json').read_text())
        assert config['dtype']=='bfloat16' and stored_dtype(tmp_path/'out')==torch.bfloat16
        assert stored_dtype(learn.save(tmp_path/'whole', dtype='fp32'))==torch.float32
        with pytest.raises(LmftError, match='dtype is'): learn.save(tmp_path/'odd', dtype='int8')

def test_the_file_says_its_dtype(tmp_path):
    "A configuration that says float16 over weights in float32 changes nothing"
    tok = train_tokenizer(['one two three four five']*9, 300)
    save_model(new_model(tok), tok, tmp_path/'base')
    config = json.loads((tmp_path/'base/config.json').read_text())
    (tmp_path/'base/config.json').write_text(json.dumps(dict(config, dtype='float16')))
    learn = sft_learner(asks, tmp_path/'base', method='lora', seq_len=16)
    again = load_learner(learn.save(tmp_path/'a'))
    assert again.hf.get_base_model().dtype==torch.float32

@pytest.mark.parametrize('arch,o', [('llama', dict(modules_to_save=['lm_head'])), ('llama', dict(modules_to_save=['embed_tokens'])), ('gpt2', dict(bias='all'))])
def test_lora_that_also_trains_parts_of_the_base(tmp_path, arch, o):
    "It knows its base when it is opened again, and is merged"
    tok = train_tokenizer(['one two three four five']*9, 300)
    save_model(new_model(tok, arch=arch), tok, tmp_path/'base')
    learn = sft_learner(asks, tmp_path/'base', method='lora', seq_len=16, **o)
    learn.fit_cos(steps=2)
    again = load_learner(learn.save(tmp_path/'a'))
    ids = torch.tensor([[5, 6, 7, 8]])
    learn.hf.eval()
    assert torch.allclose(again.hf(input_ids=ids).logits, learn.hf(input_ids=ids).logits, atol=1e-5)
    save_model(new_model(tok, arch=arch), tok, tmp_path/'base')                                 # another one in its place
    with pytest.raises(LmftError, match='belongs to'): load_learner(tmp_path/'a')

def test_an_adapter_without_a_task(tmp_path):
    "Saved by peft alone on a classifier: opened with the head of its base"
    tok = train_tokenizer(['one two three four five']*9, 300)
    save_model(new_model(tok, head='sequence_classification', num_labels=2), tok, tmp_path/'base')
    peft = get_peft_model(load_model(tmp_path/'base', 'sequence_classification'), LoraConfig(target_modules=['q_proj']))
    peft.save_pretrained(tmp_path/'a')
    tok.save_pretrained(tmp_path/'a')
    assert 'prediction' in load_learner(tmp_path/'a').predict('one two')
