"Words of every script: scores, entities, filters and masks on scripts and tokenizers of every type"
import random, re, string, unicodedata
from collections import Counter

import pytest, torch
from rouge_score import rouge_scorer
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from lmft.core import BadRecord, set_seed
from lmft.check.doctor import word_runs
from lmft.data.tokenizers import token_bytes, train_tokenizer
from lmft.data.words import plain_words, word_spans, words_of
from lmft.evals.evaluation import grade, metric_of, metrics
from lmft.models.loading import new_model
from lmft.stages.extraction import ner_dls, predict_entities, tags_of
from lmft.stages.classification import label_config
from lmft.stages.finetuning import tune_learner
from lmft.stages.guidelines import check_against
from lmft.stages.making import filter_rows, rouge_l
from lmft.stages.pretraining import mask_tokens, mlm_examples, segments
from lmft.stages.questions import answer_questions, qa_dls, qa_examples, squad_scores, squad_words, usable_questions

english = ['The old cat likes to sleep in the garden, and the dog runs after the red ball.',
           'Rosa went to the market with her mother; they bought bread, milk and 3 apples.',
           "It's late. The children don't want to go home, but they must."]
chinese = ['我爱北京天安门。天安门上太阳升！', '今天天气很好，我们去公园散步吧。', '他昨天买了三本书，都很有意思。你看过吗？']
scripts = dict(russian='Привет, мир и дом', hindi='दिल्ली की कहानी बहुत लंबी है।', arabic='مرحبا بالعالم كيف حالك؟',
               korean='서울은 아주 큰 도시이다', chinese='我爱北京天安门。', japanese='東京は大きい都市です。', thai='ภาษาไทยไม่ยาก',
               tamil='தமிழ் மொழி', greek='Καλημέρα κόσμε', hebrew='שָׁלוֹם עולם', persian='می‌روم به خانه', vietnamese='Tiếng Việt')

@pytest.mark.parametrize('text', scripts.values(), ids=scripts)
def test_each_script_is_scored(text):
    for t in (text, unicodedata.normalize('NFD', text), unicodedata.normalize('NFC', text)):
        assert rouge_l(t, text)==metrics['rouge_l'](t, text)==grade(dict(output=text), t, 'rouge_l')==1
        assert grade(dict(output=text), t+'.')==1 and squad_scores([t], [dict(answers=dict(text=[text]))])==dict(exact_match=1, f1=1)
    other = text[:-1] if text[-1].isalpha() else text[:-2]
    assert grade(dict(output=text), other)<1 and rouge_l(text, other)<1
    covered = {i for a,b in word_spans(text) for i in range(a, b)}
    assert all(i in covered or c.isspace() or unicodedata.category(c)=='Cf' for i,c in enumerate(text))
    for a,b in word_spans(text): assert not (b<len(text) and unicodedata.category(text[b])[0]=='M')    # no mark alone

@pytest.mark.parametrize('a,b', [('कि', 'की'), ('पल', 'पाल'), ('שלום', 'שָׁלוֹם'), ('是', '不是'), ('กา', 'กี')])
def test_signs_on_letters_count(a, b):
    assert words_of(a)!=words_of(b) and plain_words(a)!=plain_words(b)
    assert rouge_l(a, b)<1 and grade(dict(output=a), b)<1 and grade(dict(output=a), b, 'rouge_l')<1
    rows = [dict(instruction=t, input='', output='') for t in (a, b)]
    assert len(filter_rows(rows, rouge=.92)[0])==2

def test_english_rouge_is_rouge_score():
    rng,official = random.Random(0),rouge_scorer.RougeScorer(['rougeL'], use_stemmer=True)
    for _ in range(200):
        a,b = (' '.join(rng.choices(["houses", 'House,', "c's", 'D-d', '4.5', 'running', 'a_b', 'x²'[:1]], k=rng.randint(1, 20))) for _ in range(2))
        assert metrics['rouge_l'](a, b)==pytest.approx(official.score(b, a)['rougeL'].fmeasure)

def test_lengths_by_words():
    assert metric_of([dict(output='北京市')])=='exact' and metric_of([dict(output='北京是中国的首都')])=='rouge_l'
    assert check_against(dict(limits=dict(output=[1, 3])), dict(instruction='x', input='', output='北京是中国的首都'))

def test_runs_without_blanks():
    text = '今天天气很好我们去公园散步吧他昨天买了三本书都很有意思'
    runs,_ = word_runs([text])
    assert len(runs)==len(text)-12 and set(word_runs(['哦'+text+'。'])[0])>=set(runs)

def official_words(s):
    "`normalize_answer` of SQuAD's script, its four steps"
    s = ''.join(c for c in s.lower() if c not in set(string.punctuation))
    return ' '.join(re.sub(r'\b(a|an|the)\b', ' ', s).split()).split()

def official_f1(a, gold):
    same = sum((Counter(a) & Counter(gold)).values())
    if not a or not gold: return int(a==gold)
    if not same: return 0
    p,r = same/len(a),same/len(gold)
    return 2*p*r/(p+r)

def test_english_squad_is_the_script():
    rng = random.Random(1)
    bits = ['The', 'a', 'an', 'cat,', "it's", 'U.S.A.', '“so”', '1939–45', 'café', 'É', '$5', 'the-end', '  ', '°', 'naïve', '…']
    for _ in range(400):
        a,g = (' '.join(rng.choices(bits, k=rng.randint(0, 6))) for _ in range(2))
        assert squad_words(a)==official_words(a)
        got = squad_scores([a], [dict(answers=dict(text=[g]))])
        golds = official_words(g)
        assert got==dict(exact_match=official_words(a)==golds, f1=pytest.approx(official_f1(official_words(a), golds)))

def test_squad_in_other_scripts():
    def f1(a, g): return squad_scores([a], [dict(answers=dict(text=[g]))])['f1']
    assert f1('北京。', '北京')==f1('नई दिल्ली।', 'नई दिल्ली')==f1('القاهرة،', 'القاهرة')==1
    assert f1('北京', '北京市')==pytest.approx(.8) and f1('दिल्ली', 'दिल्लू')==0

def fast(model, trainer, pre=None, norm=None):
    t = Tokenizer(model)
    if pre: t.pre_tokenizer = pre
    if norm: t.normalizer = norm
    t.train_from_iterator((english+chinese)*30, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=t, unk_token='[UNK]', pad_token='[PAD]', eos_token='[EOS]', cls_token='[CLS]',
                                   sep_token='[SEP]', mask_token='[MASK]')

how = dict(special_tokens=['[UNK]', '[PAD]', '[EOS]', '[CLS]', '[SEP]', '[MASK]'], show_progress=False)
kinds = {
    'byte-level BPE': lambda: fast(models.BPE(), trainers.BpeTrainer(vocab_size=500, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), **how),
                                   pre_tokenizers.ByteLevel(add_prefix_space=False)),
    'WordPiece': lambda: fast(models.WordPiece(unk_token='[UNK]'), trainers.WordPieceTrainer(vocab_size=300, **how),
                              pre_tokenizers.BertPreTokenizer(), normalizers.BertNormalizer()),
    'WordPiece by blanks': lambda: fast(models.WordPiece(unk_token='[UNK]'), trainers.WordPieceTrainer(vocab_size=300, **how),
                                        pre_tokenizers.WhitespaceSplit()),
    'Unigram, Metaspace': lambda: fast(models.Unigram(), trainers.UnigramTrainer(vocab_size=200, unk_token='[UNK]', **how), pre_tokenizers.Metaspace()),
    'Unigram without words': lambda: fast(models.Unigram(), trainers.UnigramTrainer(vocab_size=200, unk_token='[UNK]', **how)),
    'BPE, Metaspace unsplit': lambda: fast(models.BPE(unk_token='[UNK]'), trainers.BpeTrainer(vocab_size=180, **how), pre_tokenizers.Metaspace(split=False)),
    'BPE without words': lambda: fast(models.BPE(unk_token='[UNK]'), trainers.BpeTrainer(vocab_size=160, **how))}
made = {}
@pytest.fixture(params=kinds)
def kind(request): return made.setdefault(request.param, kinds[request.param]())

@pytest.mark.parametrize('rate', [.15, .3])
@pytest.mark.parametrize('texts', [english, chinese], ids=['English', 'Chinese'])
def test_masks_as_many_as_asked(kind, texts, rate):
    "Over 300 masks of a text of some 150 words: the share of tokens, and each word whole"
    exs,g,hit,n = mlm_examples([dict(text=' '.join(texts*3))], kind, 600),torch.Generator().manual_seed(0),0,0
    assert len(exs)==1
    for _ in range(300):
        ids,labels = mask_tokens(exs[0]['input_ids'], exs[0]['words'], kind, rate, g)
        asked,words = labels!=-100,exs[0]['words']
        hit,n = hit+asked.sum().item(),n+(words>=0).sum().item()
        assert not asked[words<0].any()
        for w in words[asked].unique(): assert asked[words==w].all()
    assert abs(hit/n-rate)<.03, hit/n

@pytest.mark.parametrize('texts', [english, chinese, [scripts['hindi'], scripts['thai'], scripts['arabic']]], ids=['English', 'Chinese', 'others'])
def test_words_of_pieces(kind, texts):
    "Word numbers rise without gaps, no piece is too long, and no word stands for more than the tokens that begin in it"
    for text in texts:
        for most in (4, 11, 300):
            for ids,ws in segments(text, kind, most):
                assert len(ids)==len(ws)<=most and ws==sorted(ws) and {*range(ws[0], ws[-1]+1)}=={*ws}
        (ids,ws), = segments(text.replace('. ', ' '), kind, 300) if texts is english else [max(segments(text, kind, 300), key=lambda p: len(p[0]))]
        assert len({*ws})<=len(word_spans(text))
        if texts is chinese: assert len({*ws})>.3*len(ids)

def test_bytes_of_tokens(kind):
    "What the tokens of a text of plain words stand for is the text, with the blank that some tokenizers put before it"
    n = token_bytes(kind)
    for text in ('the old cat likes to sleep', 'she went to the market with the dog'):
        ids = kind(text, add_special_tokens=False).input_ids
        assert kind.unk_token_id not in ids and n[ids].sum().item()-len(text.encode()) in (0, 1)

def test_sentences_of_other_scripts():
    tok = train_tokenizer(chinese+[scripts['hindi']], 400)
    one,two = '今天天气很好。','我们去公园散步吧！'
    n = len(tok(two).input_ids)
    assert [tok.decode(i) for i,_ in segments(one+two, tok, n)]==[one, two]
    one,two = 'यह घर है।','वह भी घर है।'
    n = len(tok(' '+two).input_ids)
    assert [tok.decode(i).strip() for i,_ in segments(f'{one} {two}', tok, n)]==[one, two]

def test_hindi_entities():
    "A model that knows its sentences finds the entities in the plain text, full stop at the last word"
    names = 'राम सीता मोहन गीता'.split(),'दिल्ली मुंबई पुणे'.split()
    texts = [f'{a} {b} में रहता है ।' for a in names[0] for b in names[1]]
    records = [dict(tokens=t.split(), tags=['B-PER', 'B-LOC', 'O', 'O', 'O', 'O']) for t in texts]
    tok = train_tokenizer(texts*4, 420)
    set_seed(0)
    m = new_model(tok, arch='bert', head='token_classification', seq_len=64, hidden_size=64, num_hidden_layers=1, **label_config(tags_of(records)))
    learn = tune_learner(ner_dls(records, records, tok, m, seq_len=64, bs=4, device='cpu'), m, lr=5e-3)
    with learn.no_bar(), learn.no_logging(): learn.fit_cos(20)
    for t in texts:
        plain = t.replace(' ।', '।')
        found = predict_entities(learn.model.hf, tok, [plain])[0]
        assert [(e['type'], e['text'], plain[e['start']:e['end']]) for e in found]==[(k, w, w) for k,w in zip(('PER', 'LOC'), t.split())]

context = 'The  ball is red\u00ad and the cafe\u0301 is sma\u00adll , über alles .'
spans = dict(space_before=(12, 16), space_after=(13, 17), soft_hyphen=(13, 17), soft_within=(33, 39), decomposed=(26, 31),
             blanks=(3, 9), half_accent=(26, 30))
@pytest.mark.parametrize('name', spans)
def test_answers_that_tokens_do_not_begin(kind, name):
    "What is labelled is the words that the answer touches, without the blanks around it"
    a,b = spans[name]
    m = new_model(kind, arch='bert', head='question_answering', seq_len=256, num_hidden_layers=1)
    record = dict(context=context, question='What ?', answers=dict(text=[context[a:b]], answer_start=[a]))
    ex, = qa_examples([record], kind, m, seq_len=200)
    first,last = ex['labels'][:2].tolist()
    assert 0<first<=last
    offsets = kind(context, add_special_tokens=False, return_offsets_mapping=True)['offset_mapping']
    shift = len(kind('What ?', add_special_tokens=False).input_ids)+2
    start,end = offsets[first-shift][0],offsets[last-shift][1]
    assert start<=a+len(context[a:b])-len(context[a:b].lstrip()) and end>=len(context[:b].rstrip('\u00ad '))-('accent' in name or name=='decomposed')
    before = context[start:a].strip()
    assert 'without words' in str(kind) or len(before)<=12

def test_bad_answers_alone_are_skipped():
    tok = made.setdefault('WordPiece', kinds['WordPiece']())
    m = new_model(tok, arch='bert', head='question_answering', seq_len=64, num_hidden_layers=1)
    def record(text, start, question='What ?'): return dict(context=context, question=question, answers=dict(text=[text], answer_start=[start]))
    good = [record(' red', 12), record('café', 26), record('ball', 5)]
    faulty = [record('  ', 3), record('zebra', 5), record('red', 13, 'why '*80), record('', 3)]
    for r in faulty:
        with pytest.raises(BadRecord, match='record 2'): qa_examples([good[0], r], tok, m, 64)
    bad,every = [],[good[0], *faulty, *good[1:]]
    assert len(qa_examples(every, tok, m, 64, on_bad='skip', bad=bad))==len(qa_examples(good, tok, m, 64))
    assert [b.record for b in bad]==[2, 3, 4, 5] and usable_questions(every, tok, m, 64)==good
    assert qa_dls(every, good, tok, m, 64, on_bad='skip', bs=2, device='cpu').train.n==len(qa_examples(good, tok, m, 64))

def test_an_answer_longer_than_a_window():
    tok = made.setdefault('byte-level BPE', kinds['byte-level BPE']())
    m = new_model(tok, arch='bert', head='question_answering', seq_len=64, num_hidden_layers=1)
    long = dict(context='It was '+'very '*40+'late.', question='How?', answers=dict(text=['very '*40], answer_start=[7]))
    short = dict(context='It was late.', question='How?', answers=dict(text=['late'], answer_start=[7]))
    with pytest.raises(BadRecord, match='no window holds the whole answer'): qa_examples([long], tok, m, 40, 8)
    assert len(qa_examples([long, short], tok, m, 40, 8, on_bad='skip'))==1
    assert len(answer_questions(m, tok, [short], 40, 8))==1

def test_the_case_file():
    "Every record of the case trains, the one whose answer begins with a space too"
    import json, os
    from pathlib import Path
    path = Path(os.environ.get('LMFT_DATA', 'none')).parent/'cases/files/qa_space/q_space.jsonl'
    if not path.exists(): pytest.skip('no case files here')
    records = [json.loads(l) for l in path.read_text().splitlines()]
    tok = made.setdefault('WordPiece', kinds['WordPiece']())
    m = new_model(tok, arch='bert', head='question_answering', seq_len=64, num_hidden_layers=1)
    exs = qa_examples(records, tok, m, 64)
    assert len(exs)==len(records) and exs[-1]['labels'][:2].tolist()[0]>0
