"Losses of heads against 🤗's own, scores against seqeval and SQuAD's rules, frames of real tokenizers, real data"
import json, random

import pytest, torch
from seqeval.metrics import f1_score
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import (AutoModelForQuestionAnswering, AutoModelForSequenceClassification, BertConfig, DistilBertConfig,
                          PreTrainedTokenizerFast, RobertaConfig)

import lmft.models.adapters
from lmft.data.tokenizers import train_tokenizer
from lmft.core import BadRecord, LmftError, set_seed
from lmft.stages.extraction import EntityF1, entity_f1, ner_dls, ner_examples, predict_tags, tags_of
from lmft.stages.questions import answer_questions, qa_dls, qa_examples, squad_scores
from lmft.stages.classification import MacroF1, label_config, labels_of
from lmft.stages.finetuning import (classify_dls, classify_examples, encode_windows, predict, predict_labels, row_dls,
                                    tune_learner)
from lmft.train.learner import Accuracy
from lmft.models.loading import heads, load_model, new_model, save_model
from lmft.data.records import read_records

words = 'the cat and a dog sat on my mat while ice cream melted slowly in that warm sun of June'.split()
rng = random.Random(0)
def say(n): return ' '.join(rng.choices(words, k=n))
texts = [say(rng.randint(1, 30)) for _ in range(40)]
tok = train_tokenizer(texts, 300)
rows = [dict(text=t, label=rng.choice('abc')) for t in texts]
tagged = [dict(tokens=t.split(), tags=[rng.choice(['O', 'B-X', 'I-X', 'B-Y']) for _ in t.split()]) for t in texts]

def asked(n, seed=0):
    "Records of SQuAD with several windows each"
    r = random.Random(seed)
    for _ in range(n):
        context = ' '.join(r.choices(words, k=60))
        start = context.index(' ', r.randrange(200))+1
        text = ' '.join(context[start:].split()[:r.randint(1, 3)])
        yield dict(id='0', context=context, question=' '.join(r.choices(words, k=4)),
                   answers=dict(text=[text], answer_start=[start]))
asked = list(asked(12))

def bert_tokenizer():
    "A tokenizer as BERT's: lower case, WordPiece, and a frame of its own"
    vocab = ['[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]', *sorted({w.lower() for w in words}), *'abcdefghijklmnop',
             *(f'##{c}' for c in 'abcdefghijklmnopqrstuvwxyz')]
    t = Tokenizer(models.WordPiece({v: i for i,v in enumerate(vocab)}, unk_token='[UNK]'))
    t.normalizer,t.pre_tokenizer = normalizers.BertNormalizer(),pre_tokenizers.BertPreTokenizer()
    t.post_processor = processors.BertProcessing(('[SEP]', 3), ('[CLS]', 2))
    return PreTrainedTokenizerFast(tokenizer_object=t, pad_token='[PAD]', unk_token='[UNK]', cls_token='[CLS]',
                                   sep_token='[SEP]', mask_token='[MASK]')
wordpiece = bert_tokenizer()

small = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, hidden_dropout_prob=0.,
             attention_probs_dropout_prob=0.)
def encoder(kind, tok, head, **kwargs):
    "A tiny encoder of another family, with random weights"
    set_seed(0)
    config = dict(bert=lambda: BertConfig(vocab_size=len(tok), max_position_embeddings=128, **small, **kwargs),
                  roberta=lambda: RobertaConfig(vocab_size=len(tok), max_position_embeddings=130, type_vocab_size=1,
                                                pad_token_id=tok.pad_token_id, **small, **kwargs),
                  distilbert=lambda: DistilBertConfig(vocab_size=len(tok), max_position_embeddings=128, dim=32, n_layers=2,
                                                      n_heads=2, hidden_dim=64, dropout=0., attention_dropout=0.,
                                                      seq_classif_dropout=0., qa_dropout=0., **kwargs))[kind]()
    return heads[head].from_config(config)

def model_of(arch, head, **kwargs):
    set_seed(0)
    m = new_model(tok, arch=arch, head=head, seq_len=128, **kwargs)
    return m.requires_grad_(True)

def padded(exs, key, value): return torch.nn.utils.rnn.pad_sequence([e[key] for e in exs], True, value)

def valid_loss(m, t, exs, bs, metrics=()):
    learn = tune_learner(row_dls(exs, exs, t, 128, bs=bs, device='cpu'), m, metrics=metrics)
    with learn.no_bar(): return learn.validate()

cases = [(tok, 'llama'), (tok, 'qwen3'), (tok, 'gpt2'), (tok, 'bert'), (wordpiece, 'bert'), (wordpiece, 'roberta'),
         (wordpiece, 'distilbert')]
def made(t, arch, head, **kwargs):
    return encoder(arch, t, head, **kwargs) if t is wordpiece else model_of(arch, head, **kwargs)

@pytest.mark.parametrize('t,arch', cases)
def test_row_loss_is_transformers_own(t, arch):
    m = made(t, arch, 'sequence_classification', **label_config(labels_of(rows)))
    exs = classify_examples(rows, t, m)
    ids = padded(exs, 'input_ids', t.pad_token_id)
    y = torch.stack([e['labels'][-1] for e in exs])
    with torch.no_grad(): truth = m.eval()(ids, attention_mask=(ids!=t.pad_token_id).long(), labels=y).loss.item()
    assert valid_loss(m, t, exs, 7)[0]==pytest.approx(truth, abs=1e-5)

@pytest.mark.parametrize('t,arch', cases)
def test_token_loss_is_transformers_own(t, arch):
    m = made(t, arch, 'token_classification', **label_config(tags_of(tagged)))
    exs = ner_examples(tagged, t, m)
    ids,y = padded(exs, 'input_ids', t.pad_token_id),padded(exs, 'labels', -100)
    with torch.no_grad(): truth = m.eval()(ids, attention_mask=(ids!=t.pad_token_id).long(), labels=y).loss.item()
    assert valid_loss(m, t, exs, 7)[0]==pytest.approx(truth, abs=1e-5)

@pytest.mark.parametrize('t,arch', cases)
def test_span_loss_is_transformers_own(t, arch):
    "Row by row: in a padded batch 🤗's softmax counts the padding as places"
    m = made(t, arch, 'question_answering')
    exs = qa_examples(asked, t, m, seq_len=64, stride=24)
    assert len(exs)>len(asked)
    def one(e):
        kw = {k: e[k][None] for k in ('input_ids', 'token_type_ids') if k in e}
        return m.eval()(**kw, start_positions=e['labels'][:1], end_positions=e['labels'][1:2]).loss.item()
    with torch.no_grad(): truth = sum(map(one, exs))/len(exs)
    assert ('token_type_ids' in exs[0])==(arch=='bert')
    assert valid_loss(m, t, exs, 7)[0]==pytest.approx(truth, abs=1e-5)

@pytest.mark.parametrize('t,arch', cases)
def test_predictions_ignore_batch_order_and_padding(t, arch):
    side = t.padding_side
    for head,build,data in (('sequence_classification', classify_examples, rows), ('token_classification', ner_examples, tagged)):
        config = label_config(labels_of(rows) if head=='sequence_classification' else tags_of(tagged))
        m = made(t, arch, head, **config)
        exs = build(data, t, m)
        truth = [predict(m, t, [e])[0] for e in exs]
        try:
            ways = [dict(bs=3), dict(bs=40), dict(padding_side='left'), dict(left=True)]
            for kw in ways:
                t.padding_side = kw.pop('padding_side', side)
                for a,b in zip(predict(m, t, exs, **kw), truth): assert torch.allclose(a, b, atol=1e-5)
        finally: t.padding_side = side
        for a,b in zip(predict(m, t, exs[::-1])[::-1], truth): assert torch.allclose(a, b, atol=1e-5)
    m = made(t, arch, 'question_answering')
    said = answer_questions(m, t, asked, seq_len=64, stride=24)
    assert said==answer_questions(m, t, asked, seq_len=64, stride=24, bs=1)
    assert said==answer_questions(m, t, asked[::-1], seq_len=64, stride=24, bs=5)[::-1]

def test_frames():
    own = encode_windows(wordpiece, encoder('bert', wordpiece, 'sequence_classification'), ['the cat'])['input_ids'][0]
    assert own==wordpiece('the cat').input_ids
    ours = encode_windows(tok, model_of('bert', 'sequence_classification'), ['the cat'])['input_ids'][0]
    assert ours==[tok.cls_token_id, *tok('the cat').input_ids, tok.sep_token_id]
    assert encode_windows(tok, model_of('llama', 'sequence_classification'), ['the cat'])['input_ids'][0]==tok('the cat').input_ids

@pytest.mark.parametrize('seq_len', [128, 12])
@pytest.mark.parametrize('t,arch', [(tok, 'llama'), (wordpiece, 'bert')])
def test_each_word_has_one_label(t, arch, seq_len):
    "Also across windows, and where the tokenizer drops a word"
    data = [dict(tokens=['\u200b', *r['tokens']], tags=['O', *r['tags']]) for r in tagged]
    m = made(t, arch, 'token_classification', **label_config(tags_of(tagged)))
    exs = ner_examples(data, t, m, seq_len)
    names = m.config.id2label
    dropped = len(t('\u200b', add_special_tokens=False).input_ids)==0
    want = [y for r in data for y in r['tags'][dropped:]]
    assert sorted(names[y] for e in exs for y in e['labels'].tolist() if y!=-100)==sorted(want)
    said = predict_tags(m, t, [r['tokens'] for r in data], seq_len)
    assert [len(s) for s in said]==[len(r['tokens']) for r in data]
    if dropped: assert all(s[0]=='O' for s in said)

def test_entity_f1_is_seqeval():
    r = random.Random(1)
    kinds = ['O', 'B-X', 'I-X', 'E-X', 'S-X', 'B-Y', 'I-Y']
    for _ in range(50):
        true,pred = ([[r.choice(kinds) for _ in range(n)] for n in (1, 4, 9, 15)] for _ in range(2))
        assert entity_f1(pred, true)==pytest.approx(f1_score(true, pred, zero_division=0), abs=1e-9)
    assert entity_f1([['O']], [['O']])==0

def test_metrics_are_exact_over_batches():
    m = model_of('bert', 'token_classification', **label_config(tags_of(tagged)))
    pred = predict_tags(m, tok, [r['tokens'] for r in tagged])
    for bs in (1, 7):
        assert valid_loss(m, tok, ner_examples(tagged, tok, m), bs, [EntityF1(m)])[1]==pytest.approx(
            f1_score([r['tags'] for r in tagged], pred, zero_division=0), abs=1e-9)
    m = model_of('llama', 'sequence_classification', **label_config([*'abcd']))                             # a class that no row has
    from sklearn.metrics import f1_score as sk
    said = predict_labels(m, tok, texts)
    truth = sk([r['label'] for r in rows], said, average='macro')
    for bs in (1, 7): assert valid_loss(m, tok, classify_examples(rows, tok, m), bs, [MacroF1()])[1]==pytest.approx(truth, abs=1e-9)

@pytest.mark.parametrize('answer,golds,em,f1', [
    ('The Beatles', ['Beatles'], 1, 1),                          # articles and capitals
    ('U.S.A.', ['USA'], 1, 1),                                   # punctuation
    ('an  apple a day', ['apple day'], 1, 1),                    # articles and spaces
    ('theatre', ['atre'], 0, 0),                                 # articles are whole words
    ('in 1066', ['1066', 'the year 1066'], 0, 2/3),              # the best of several: 1 of 2, 1 of 1
    ('cat cat', ['cat'], 0, 2/3),                                # a word counts as often as both have it
    ('', [], 1, 1), ('something', [], 0, 0), ('', ['cat'], 0, 0),
    ('the', ['a', 'cat'], 0, 0), ('the', ['a'], 1, 1)])
def test_squad_rules(answer, golds, em, f1):
    got = squad_scores([answer], [dict(answers=dict(text=golds))])
    assert (got['exact_match'], got['f1'])==(em, pytest.approx(f1))

def test_squad_means():
    rs = [dict(answers=dict(text=[g])) for g in ('cat', 'old dog', 'sun')]
    assert squad_scores(['cat', 'dog', 'moon'], rs)==dict(exact_match=1/3, f1=pytest.approx((1+2/3)/3))
    with pytest.raises(ValueError): squad_scores(['cat'], rs)

@pytest.mark.parametrize('t,arch', [(tok, 'llama'), (tok, 'bert'), (wordpiece, 'bert')])
def test_windows_find_the_answer(t, arch):
    "The labelled tokens give the answer back, in every window that holds it whole"
    m = made(t, arch, 'question_answering')
    exs,whole = qa_examples(asked, t, m, seq_len=64, stride=24),0
    null = [len(e['input_ids'])-1 if arch=='llama' else 0 for e in exs]
    answers = {r['answers']['text'][0].lower() for r in asked}
    for e,n in zip(exs, null):
        a,b = e['labels'][:2].tolist()
        if (a, b)==(n, n): continue
        whole += 1
        assert t.decode(e['input_ids'][a:b+1]).strip().lower() in answers
    assert whole>=len(asked)

@pytest.mark.parametrize('arch', ['llama', 'gpt2', 'bert'])
@pytest.mark.parametrize('head,plain', [('sequence_classification', AutoModelForSequenceClassification), ('question_answering', AutoModelForQuestionAnswering)])
def test_body_is_loaded_and_saved_whole(arch, head, plain, tmp_path):
    "A new head stands on the pretrained body, also where 🤗 names the body otherwise; what is saved loads anywhere"
    body = model_of(arch, 'masked' if arch=='bert' else 'causal')
    save_model(body, tok, tmp_path/'base')
    m = load_model(tmp_path/'base', head)
    want = {n: p for n,p in body.base_model.named_parameters()}
    got = {n: p for n,p in m.base_model.named_parameters() if 'pooler' not in n}
    assert got.keys()==want.keys() and all(torch.equal(p, want[n]) for n,p in got.items())
    save_model(m, tok, tmp_path/'tuned')
    again,info = plain.from_pretrained(tmp_path/'tuned', output_loading_info=True)
    assert not info['missing_keys'] and not info['unexpected_keys']
    for a,b in zip(load_model(tmp_path/'tuned', head).state_dict().values(), again.state_dict().values()): assert torch.equal(a, b)

tasks = dict(sequence_classification=(lambda m: classify_examples(rows, tok, m), lambda: label_config(labels_of(rows))),
             token_classification=(lambda m: ner_examples(tagged, tok, m), lambda: label_config(tags_of(tagged))),
             question_answering=(lambda m: qa_examples(asked, tok, m, 64, 24), dict))

@pytest.mark.parametrize('method', ['lora', 'seq_adapter', 'par_adapter', 'prefix', 'prompt'])
@pytest.mark.parametrize('arch', ['llama', 'bert'])
@pytest.mark.parametrize('head', tasks)
def test_adapter_keeps_head_and_labels(method, arch, head, tmp_path):
    "A new head and a pooler are trained and saved with the adapter, and the labels are known again"
    save_model(model_of(arch, 'masked' if arch=='bert' else 'causal'), tok, tmp_path/'base')
    build,config = tasks[head]
    m = load_model(tmp_path/'base', head, **config())
    names,exs = dict(m.config.id2label),build(m)
    learn = tune_learner(row_dls(exs, exs, tok, 64, bs=8, device='cpu'), m, method)
    with learn.no_bar(), learn.no_logging(): learn.fit_cos(steps=2)
    save_model(learn.model.hf, tok, tmp_path/'adapter')
    again = load_model(tmp_path/'adapter', head)
    assert head=='question_answering' or again.get_base_model().config.id2label==names
    truth = predict(learn.model.hf, tok, exs)
    for a,b in zip(predict(again, tok, exs), truth): assert torch.equal(a, b)
    for a,b in zip(predict(again, tok, exs[::-1], bs=5)[::-1], truth): assert torch.allclose(a, b, atol=1e-5)

@pytest.mark.parametrize('method', ['full', 'last:1', 'head', 'gradual', 'lora'])
def test_masked_models_learn_by_every_method(method):
    "A class told by one word; the head's own layers move, the body only where the method says so"
    data = [dict(text=f'{say(5)} {w} {say(3)}', label=w) for w in ('cat', 'dog')*20]
    m = model_of('bert', 'sequence_classification', **label_config(['cat', 'dog']))
    before = {n: p.clone() for n,p in m.named_parameters()}
    learn = tune_learner(classify_dls(data, data, tok, m, bs=8, device='cpu'), m, method)
    with learn.no_bar(), learn.no_logging(): learn.fit_cos(steps=12)
    after = dict(learn.model.hf.get_base_model().named_parameters() if method=='lora' else learn.model.hf.named_parameters())
    moved = {n for n,p in before.items() if n in after and not torch.equal(p, after[n])}
    if method!='lora': assert {'classifier.weight', 'bert.pooler.dense.weight'}<=moved
    inner = {n for n in moved if n.startswith('bert.') and 'pooler' not in n}
    assert {'full': len(inner)>20, 'gradual': len(inner)>20, 'last:1': inner and all('layer.3' in n for n in inner),
            'head': not inner, 'lora': not inner}[method]

def test_refusals():
    m = model_of('llama', 'sequence_classification', **label_config([*'abc']))
    with pytest.raises(BadRecord, match="record 2: field 'label': is 'd'"): classify_dls(rows, [rows[0], dict(text='x', label='d')], tok, m)
    with pytest.raises(BadRecord, match="record 3: field 'label': is 'x'"): labels_of([dict(label=y) for y in (0, 1, 'x')])
    bad = dict(asked[0], answers=dict(text=['zebra'], answer_start=[0]))
    with pytest.raises(BadRecord, match='does not stand at 0'): qa_examples([bad], tok, model_of('llama', 'question_answering'), 64, 24)

def test_broken_files(data):
    with pytest.raises(LmftError, match='answer'): list(read_records([data/'broken/squad_bad_offsets.json']))
    skipped = list(read_records([data/'broken/label_out_of_range.jsonl'], on_bad='skip', bad=[]))
    assert labels_of(skipped)==['0', '1', '7']                # stars and years have gaps as well; the doctor counts classes

def real(data, *names): return [r for n in names for r in read_records([data/n])]

@pytest.mark.parametrize('arch', ['llama', 'bert'])
def test_real_sentiment(data, arch):
    rs = real(data, 'sentiment/sst2_dev.jsonl')[:80]
    t = train_tokenizer((r['text'] for r in rs), 1000)
    set_seed(0)
    m = new_model(t, arch=arch, head='sequence_classification', seq_len=256, **label_config(labels_of(rs)))
    learn = tune_learner(classify_dls(rs[:48], rs[48:], t, m, 128, bs=16, device='cpu'), m, lr=1e-3,
                        metrics=[Accuracy(), MacroF1()])
    before = learn.validate(0)[0]
    with learn.no_bar(), learn.no_logging(): learn.fit_cos(steps=30)
    assert learn.validate(0)[0]<before-.05
    assert set(predict_labels(m, t, [r['text'] for r in rs[:9]]))<={'0', '1'}

@pytest.mark.parametrize('name', ['wnut17train', 'sec_FIN5', 'emerging.dev'])
def test_real_entities(data, name):
    rs = real(data, f'ner/{name}.conll')[:120]
    t = train_tokenizer((' '.join(r['tokens']) for r in rs), 1000)
    set_seed(0)
    m = new_model(t, arch='bert', head='token_classification', seq_len=128, **label_config(tags_of(rs)))
    exs = ner_examples(rs, t, m, 64)
    assert sum((e['labels']!=-100).sum().item() for e in exs)==sum(len(r['tokens']) for r in rs)
    learn = tune_learner(ner_dls(rs, rs, t, m, 64, bs=16, device='cpu'), m, lr=1e-3, metrics=[EntityF1(m)])
    before = learn.validate(0)[0]
    with learn.no_bar(), learn.no_logging(): learn.fit_cos(steps=10)
    assert learn.validate(0)[0]<before/2

@pytest.mark.parametrize('arch', ['llama', 'bert'])
def test_real_answers(data, arch):
    rs = real(data, 'qa/xquad_en_dev.json')[::40][:24]
    t = train_tokenizer((r['context'] for r in rs), 1000)
    set_seed(0)
    m = new_model(t, arch=arch, head='question_answering', seq_len=256)
    exs = qa_examples(rs, t, m, 256, 96)
    assert len(exs)>len(rs)
    learn = tune_learner(row_dls(exs, exs, t, 256, bs=8, device='cpu'), m, lr=1e-3)
    before = learn.validate(0)[0]
    with learn.no_bar(), learn.no_logging(): learn.fit_cos(steps=5)
    assert learn.validate(0)[0]<before
    said = answer_questions(m, t, rs, 256, 96)
    assert all(a and a in r['context'] for a,r in zip(said, rs))
    gold = squad_scores([r['answers']['text'][0] for r in rs], rs)
    assert gold==dict(exact_match=1, f1=1) and squad_scores(said, rs)['f1']<1
