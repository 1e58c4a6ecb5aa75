"Which tokens of a conversation are trained, against renderings written by hand with ⟦ ⟧ around what must be trained"
import re
from functools import lru_cache

import pytest
import torch
from stock_templates import stock, talks as stock_talks, tokenizer_for, verdict
from tokenizers.processors import TemplateProcessing

from lmft.data.chat import chat_examples
from lmft.data.examples import sft_examples, text_example
from lmft.data.records import read_records
from lmft.data.splits import split_records
from lmft.data.tokenizers import train_tokenizer
from lmft.core import LmftError
from lmft.generation import answer_example, encode_prompt
from lmft.stages.prediction import prompt_of
from lmft.stages.table import stages

# « opens an answer, » ends its text, ¦ stands after its stop token: `{% generation %}` marks are put there, or nothing
templates = dict(
chatml="""{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}{% if m['role'] == 'assistant' %}\
«{{ m['content'] }}»{{ '<|im_end|>' }}¦{{ '\n' }}\
{% else %}{{ m['content'] + '<|im_end|>' + '\n' }}{% endif %}{% endfor %}\
{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}""",
llama3="""{% for m in messages %}{% if loop.index0 == 0 %}{{ bos_token }}{% endif %}\
{{ '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n' }}{% if m['role'] == 'assistant' %}\
«{{ m['content'] | trim }}»{{ '<|eot_id|>' }}¦\
{% else %}{{ m['content'] | trim + '<|eot_id|>' }}{% endif %}{% endfor %}\
{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}""",
mistral="""{{ bos_token }}{% if messages[0]['role'] == 'system' %}{% set system = messages[0]['content'] %}\
{% set turns = messages[1:] %}{% else %}{% set turns = messages %}{% endif %}{% for m in turns %}\
{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}\
{{ raise_exception('Conversation roles must alternate') }}{% endif %}\
{% if m['role'] == 'user' and loop.index0 == 0 and system is defined %}\
{{ '[INST] <<SYS>>\n' + system + '\n<</SYS>>\n\n' + m['content'] + ' [/INST]' }}\
{% elif m['role'] == 'user' %}{{ '[INST] ' + m['content'] + ' [/INST]' }}\
{% else %}«{{ ' ' + m['content'] }}»{{ eos_token }}¦{% endif %}{% endfor %}""",
gemma="""{{ bos_token }}{% if messages[0]['role'] == 'system' %}{% set first = messages[0]['content'] + '\n\n' %}\
{% set turns = messages[1:] %}{% else %}{% set first = '' %}{% set turns = messages %}{% endif %}{% for m in turns %}\
{% if m['role'] == 'assistant' %}\
{{ '<start_of_turn>model\n' }}«{{ m['content'] | trim }}»{{ '<end_of_turn>' }}¦{{ '\n' }}\
{% else %}{{ '<start_of_turn>' + m['role'] + '\n' }}{% if loop.first %}{{ first }}{% endif %}\
{{ m['content'] | trim + '<end_of_turn>\n' }}{% endif %}{% endfor %}\
{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}""")

marks = dict(plain=('', '', ''), marked=('{% generation %}', '', '{% endgeneration %}'),
             early=('{% generation %}', '{% endgeneration %}', ''))

# BOS token, EOS token, other special tokens; the stop token of an answer is the last of the row
controls = dict(chatml=(None, '<|endoftext|>', '<|im_start|>', '<|im_end|>'),
                llama3=('<|begin_of_text|>', '<|end_of_text|>', '<|start_header_id|>', '<|end_header_id|>',
                        '<|eot_id|>'),
                mistral=('<s>', '</s>'),
                gemma=('<bos>', '<eos>', '<start_of_turn>', '<end_of_turn>'))

def put_marks(template, how):
    return template.translate(dict(zip(map(ord, '«»¦'), marks[how])))

@lru_cache
def new_tok(kind):
    "A tokenizer with the special tokens of a template; it puts the BOS token before plain texts by itself"
    roles = ['system\n', 'user\n', 'assistant\n\n', 'model\n', ' [INST] [/INST]', '\n\n\n\n']
    texts,(bos,eos,*more) = [c for t in talks.values() for _,c in t]+roles,controls[kind]
    tok = train_tokenizer(texts*3, 360)
    tok.add_special_tokens(dict(eos_token=eos, extra_special_tokens=more, **({'bos_token': bos} if bos else {})))
    begin = bos and TemplateProcessing(single=f'{bos} $A', special_tokens=[(bos, tok.bos_token_id)])
    if begin: tok.backend_tokenizer.post_processor = begin
    return tok

def tok_with(kind, how):
    tok = new_tok(kind)
    tok.chat_template = put_marks(templates[kind], how)
    return tok

# The same four formats a second time, as plain Python
def by_hand(kind, talk):
    "The conversation as text with ⟦ ⟧ around what must be trained"
    system,rest = ([talk[0][1]], talk[1:]) if talk[0][0]=='system' else ([], talk)
    def each(talk, turn, answer): return ''.join(answer(c) if r=='assistant' else turn(r, c) for r,c in talk)
    if kind=='chatml': return each(talk, lambda r,c: f'<|im_start|>{r}\n{c}<|im_end|>\n',
                                   lambda c: f'<|im_start|>assistant\n⟦{c}<|im_end|>⟧\n')
    if kind=='llama3': return '<|begin_of_text|>'+each(
        talk, lambda r,c: f'<|start_header_id|>{r}<|end_header_id|>\n\n{c.strip()}<|eot_id|>',
        lambda c: f'<|start_header_id|>assistant<|end_header_id|>\n\n⟦{c.strip()}<|eot_id|>⟧')
    if kind=='mistral':
        head = ''.join(f'<<SYS>>\n{s}\n<</SYS>>\n\n' for s in system)
        text = '<s>'+each(rest, lambda r,c: f'[INST] {c} [/INST]', lambda c: f'⟦ {c}</s>⟧')
        return text.replace('[INST] ', '[INST] '+head, 1)
    head = ''.join(f'{s}\n\n' for s in system)
    text = '<bos>'+each(rest, lambda r,c: f'<start_of_turn>user\n{c.strip()}<end_of_turn>\n',
                        lambda c: f'<start_of_turn>model\n⟦{c.strip()}<end_of_turn>⟧\n')
    return text.replace('user\n', 'user\n'+head, 1)

def expected(marked, tok):
    "Ids of the prompt before each ⟦, and of the answer up to ⟧, which is tokenised behind its prompt if that changes no token of it"
    def ids(text): return tok(re.sub('[⟦⟧]', '', text), add_special_tokens=False).input_ids
    pairs,at = [],0
    while (start := marked.find('⟦', at))>=0:
        at = marked.index('⟧', start)
        prompt,whole,answer = ids(marked[:start]),ids(marked[:at]),ids('<|end|>'+marked[start:at])[1:]
        pairs.append((prompt, whole[len(prompt):] if whole[:len(prompt)]==prompt else answer))
    return pairs

def as_messages(talk): return [dict(role=r, content=c) for r,c in talk]

def turns(*contents, system=None):
    "User and assistant in turn"
    return [('system', system)]*(system is not None)+[(('user', 'assistant')[i%2], c) for i,c in enumerate(contents)]

talks = dict(
    single=turns('Hi', 'Hello, you!'),
    multi=turns('Hi', 'Hello, you!', 'How are you?', 'Fine.', 'Bye', 'See you', system='Be kind.'),
    dot=turns('Say nothing', '.', 'Again', '.'),
    role_names=turns('assistant', 'assistant', 'user', 'user', 'model', 'system\nuser', system='assistant'),
    like_the_user=turns('Fine.', 'Fine.', 'Fine.', 'Fine.', system='Fine.'),
    unicode=turns('Größe?', 'Größe é 猫 über\u200dall.', '猫', '猫猫'),
    emoji_last=turns('🐈?', 'yes 🐈', '🐈🐈', '🐈', 'more', '👩‍👩‍👧'),
    spaces=turns(' Hi ', '  two before, two after  ', '  ', ' one before', 'Hi', 'one after '),
    newlines=turns('Hi\n', '\nbefore', 'Hi\n\n', 'after\n', '\n\nHi', '\n\n\nboth\n\nand within\n\n'),
    blank=turns('Hi', ' ', 'Hi', '\n\n', 'Hi', ' \n '),
    empty=turns('Say nothing', '', 'Say something', 'Something.', 'Say nothing', ''),
    user_last=turns('Hi', 'Hello, you!', 'How are you?', system='Be kind.'))

def trained_spans(exs, tok):
    "Texts of the trained runs of examples"
    spans = []
    for ex in exs:
        on = False
        for i,l in zip(ex['input_ids'].tolist(), ex['labels'].tolist()):
            assert l in (i, -100)
            if l!=-100: spans = [*spans[:-1], spans[-1]+[i]] if on else [*spans, [i]]
            on = l!=-100
    return [tok.decode(s) for s in spans]

literal = dict(        # 'multi', written down whole
chatml='<|im_start|>system\nBe kind.<|im_end|>\n'
       '<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n⟦Hello, you!<|im_end|>⟧\n'
       '<|im_start|>user\nHow are you?<|im_end|>\n<|im_start|>assistant\n⟦Fine.<|im_end|>⟧\n'
       '<|im_start|>user\nBye<|im_end|>\n<|im_start|>assistant\n⟦See you<|im_end|>⟧\n',
llama3='<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nBe kind.<|eot_id|>'
       '<|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>'
       '<|start_header_id|>assistant<|end_header_id|>\n\n⟦Hello, you!<|eot_id|>⟧'
       '<|start_header_id|>user<|end_header_id|>\n\nHow are you?<|eot_id|>'
       '<|start_header_id|>assistant<|end_header_id|>\n\n⟦Fine.<|eot_id|>⟧'
       '<|start_header_id|>user<|end_header_id|>\n\nBye<|eot_id|>'
       '<|start_header_id|>assistant<|end_header_id|>\n\n⟦See you<|eot_id|>⟧',
mistral='<s>[INST] <<SYS>>\nBe kind.\n<</SYS>>\n\nHi [/INST]⟦ Hello, you!</s>⟧'
        '[INST] How are you? [/INST]⟦ Fine.</s>⟧[INST] Bye [/INST]⟦ See you</s>⟧',
gemma='<bos><start_of_turn>user\nBe kind.\n\nHi<end_of_turn>\n<start_of_turn>model\n⟦Hello, you!<end_of_turn>⟧\n'
      '<start_of_turn>user\nHow are you?<end_of_turn>\n<start_of_turn>model\n⟦Fine.<end_of_turn>⟧\n'
      '<start_of_turn>user\nBye<end_of_turn>\n<start_of_turn>model\n⟦See you<end_of_turn>⟧\n')

@pytest.mark.parametrize('how', marks)
@pytest.mark.parametrize('kind', templates)
def test_literal(kind, how):
    tok,stop = tok_with(kind, how),controls[kind][-1]
    assert by_hand(kind, talks['multi'])==literal[kind]
    exs,whole = chat_examples(as_messages(talks['multi']), tok),re.sub('[⟦⟧]', '', literal[kind])
    assert all(whole.startswith(tok.decode(e['input_ids'])) for e in exs) and len(tok.decode(exs[-1]['input_ids']).strip())==len(whole.strip())
    lead = ' ' if kind=='mistral' else ''
    assert trained_spans(exs, tok)==[f'{lead}{a}{stop}' for a in ('Hello, you!', 'Fine.', 'See you')]

@pytest.mark.parametrize('talk', talks)
@pytest.mark.parametrize('how', marks)
@pytest.mark.parametrize('kind', templates)
def test_token_by_token(kind, how, talk):
    tok,(bos,*_,stop) = tok_with(kind, how),controls[kind]
    pairs,exs = expected(by_hand(kind, talks[talk]), tok),chat_examples(as_messages(talks[talk]), tok)
    assert len(exs) in (1, len(pairs))
    for (prompt,answer),ex in zip(pairs, exs*(len(pairs) if len(exs)==1 else 1), strict=True):
        ids,labels = ex['input_ids'].tolist(),ex['labels'].tolist()
        assert tok.convert_ids_to_tokens(ids[:len(prompt)+len(answer)])==tok.convert_ids_to_tokens(prompt+answer)
        assert labels[len(prompt):len(prompt)+len(answer)]==answer and answer.count(tok.convert_tokens_to_ids(stop))==1
        assert all(l in (i, -100) for i,l in zip(ids, labels))
        if bos: assert ids.count(tok.bos_token_id)==1 and labels[0]==-100
    assert sum((e['labels']!=-100).sum() for e in exs)==sum(len(a) for _,a in pairs)
    whole = tok(re.sub('[⟦⟧]', '', by_hand(kind, talks[talk])), add_special_tokens=False).input_ids
    assert (len(exs)==1)==(len(pairs)==1 or all(whole[:len(p)]==p for p,_ in pairs))

@pytest.mark.parametrize('how', marks)
def test_control_tokens_that_are_not_the_stop(how):
    "Nothing but an answer's own stop token is trained among the special tokens, whatever stands beside it"
    tok = tok_with('chatml', how)
    tok.chat_template = tok.chat_template.replace("{{ '\\n' }}", "{{ '<|endoftext|>\\n' }}")
    exs = chat_examples(as_messages(talks['multi']), tok)
    assert trained_spans(exs, tok)==[a+'<|im_end|>' for a in ('Hello, you!', 'Fine.', 'See you')]

@pytest.mark.parametrize('how', marks)
def test_space_before_the_stop(how):
    "Llama 2 writes a space between answer and stop token, which the model has to write as well"
    tok = tok_with('mistral', how)
    tok.chat_template = tok.chat_template.replace('{{ eos_token }}', "{{ ' ' + eos_token }}")
    spans = trained_spans(chat_examples(as_messages(talks['multi']), tok), tok)
    assert spans==[' Hello, you! </s>', ' Fine. </s>', ' See you </s>']

# A template that takes the thoughts out of all turns but the last
forgetful = templates['chatml'].replace(
    "«{{ m['content'] }}", "«{{ m['content'] if loop.last else m['content'].split('</think>')[-1] }}")
thoughts = turns('1+1?', '<think>easy</think>2', 'And 2+2?', '<think>hm</think>4')

@pytest.mark.parametrize('how', marks)
def test_rewriting_template(how):
    "Each answer is trained with its thoughts, behind a history without them, as it will be generated"
    tok = new_tok('chatml')
    tok.chat_template = put_marks(forgetful, how)
    exs = chat_examples(as_messages(thoughts), tok)
    assert trained_spans(exs, tok)==['<think>easy</think>2<|im_end|>', '<think>hm</think>4<|im_end|>']
    assert [len(exs), 'easy' in tok.decode(exs[1]['input_ids'])]==[2, False]
    assert trained_spans(chat_examples(as_messages(thoughts), tok, turns='last'), tok)==['<think>hm</think>4<|im_end|>']
    assert len(sft_examples([dict(messages=as_messages(thoughts)), dict(instruction='Hi', output='Hello')], tok))==3

@pytest.mark.parametrize('how', marks)
@pytest.mark.parametrize('talk', ['single', 'multi'])
def test_template_without_stop(how, talk):
    tok = new_tok('chatml')
    tok.chat_template = put_marks("""{% for m in messages %}{{ m['role'] + ': ' }}{% if m['role'] == 'assistant' %}\
«{{ m['content'] }}»{{ '' }}¦{% else %}{{ m['content'] }}{% endif %}{{ '\n' }}{% endfor %}\
{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}""", how)
    with pytest.raises(LmftError, match='stop token'): chat_examples(as_messages(talks[talk]), tok)

def test_template_without_generation_prompt():
    "Where an answer begins cannot be known, so its header would be trained as if it were the answer"
    tok = tok_with('chatml', 'plain')
    tok.chat_template = tok.chat_template.partition('{% if add_generation_prompt')[0]
    with pytest.raises(LmftError): chat_examples(as_messages(talks['multi']), tok)
    tok.chat_template = put_marks(templates['chatml'], 'marked').partition('{% if add_generation_prompt')[0]
    assert len(trained_spans(chat_examples(as_messages(talks['multi']), tok), tok))==3

def test_several_templates():
    "A tokenizer may hold a dict of templates, of which `default` is for chat"
    tok = tok_with('chatml', 'marked')
    one,*_ = chat_examples(as_messages(talks['multi']), tok)
    tok.chat_template = dict(default=tok.chat_template, tool_use='{{ 1 }}')
    assert chat_examples(as_messages(talks['multi']), tok)[0]['labels'].tolist()==one['labels'].tolist()

@pytest.mark.parametrize('talk,why', [(turns('Hi'), 'no assistant'), (turns('Hi', 'a<|im_end|>b'), 'special token'),
                                      (turns('<|im_start|>system\n', 'no'), 'special token')])
def test_refused(talk, why):
    with pytest.raises(LmftError, match=why): chat_examples(as_messages(talk), tok_with('chatml', 'marked'))

def test_roles_that_the_template_refuses():
    talk = as_messages([*turns('Hi', 'a'), ('assistant', 'b')])
    with pytest.raises(LmftError, match='must alternate'): chat_examples(talk, tok_with('mistral', 'plain'))

@pytest.mark.parametrize('kind', ['chatml', 'llama3', 'gemma'])
def test_the_assistant_opens(kind):
    tok = tok_with(kind, 'plain')
    opened = as_messages([('assistant', 'Hello, you!'), *talks['single']])
    if kind=='gemma': tok.chat_template = tok.chat_template.replace("messages[0]['role']", "messages[0].role")     # fails where there is no message
    assert trained_spans(chat_examples(opened, tok), tok)==['Hello, you!'+controls[kind][-1]]*2

def test_shapes_of_messages():
    "The same tokens whatever shape the messages come in"
    tok = tok_with('chatml', 'plain')
    want = [e['labels'].tolist() for e in chat_examples(as_messages(talks['multi']), tok)]
    def labels(f): return [e['labels'].tolist() for e in chat_examples([f(m) for m in as_messages(talks['multi'])], tok)]
    assert labels(lambda m: {'from': m['role'].capitalize(), 'value': m['content']})==want
    assert labels(lambda m: dict(m, content=[dict(type='text', text=m['content'][:2]), dict(type='text', text=m['content'][2:])]))==want
    assert labels(lambda m: dict(m, name=None, tool_calls=None, role='developer' if m['role']=='system' else m['role']))==want
    assert labels(lambda m: dict(m, weight=1))==want

@pytest.mark.parametrize('how', marks)
@pytest.mark.parametrize('field', [dict(weight=0), dict(train=False)])
def test_answers_that_are_not_trained(how, field):
    tok,talk = tok_with('llama3', how),as_messages(talks['multi'])
    spans = trained_spans(chat_examples([*talk[:2], dict(talk[2], **field), *talk[3:]], tok), tok)
    assert spans==['Fine.<|eot_id|>', 'See you<|eot_id|>']

@pytest.mark.parametrize('how', marks)
def test_a_control_token_that_the_template_writes(how):
    "A tool call inside special tokens is trained whole; its result is not"
    tok = new_tok('llama3')
    tok.chat_template = put_marks(templates['llama3'].replace("{{ m['content'] | trim }}", "{{ m['content'] | trim }}{% for c in m.tool_calls %}"
        "{{ '<|start_header_id|>' + c.function.name + c.function.arguments | tojson + '<|end_header_id|>' }}{% endfor %}"), how)
    talk = [*as_messages(talks['single'][:1]), dict(role='assistant', content=None, tool_calls=[dict(function=dict(name='f', arguments='{"a": 1}'))]),
            dict(role='tool', content='Fine.'), dict(role='assistant', content='Fine.')]
    assert trained_spans(chat_examples(talk, tok), tok)==['<|start_header_id|>f{"a": 1}<|end_header_id|><|eot_id|>', 'Fine.<|eot_id|>']

def test_one_begin_token_in_a_long_text(tmp_path):
    "However many pieces a book is read in, and wherever a split puts them"
    path,tok = tmp_path/'book.txt',tok_with('llama3', 'plain')
    path.write_text('Fine. How are you?\n'*4000)
    records = list(read_records(path))
    ids = torch.cat([text_example(r, tok)['input_ids'] for r in records]).tolist()
    assert len(records)>3 and [ids.count(tok.bos_token_id), ids.count(tok.eos_token_id)]==[1, 1] and (ids[0], ids[-1])==(tok.bos_token_id, tok.eos_token_id)
    sides = [torch.cat([text_example(r, tok)['input_ids'] for r in side]).tolist() for side in split_records(records, .4)]
    assert sum(s.count(tok.bos_token_id) for s in sides)==1

rejected = {'system': ['gemma'], 'reasoning': ['qwen3_5_nothink'],
           'tools': ['cohere', 'cohere2', 'gemma', 'gemma3', 'idefics3', 'lfm2', 'llama3', 'llava_next', 'phi3', 'phi3_5', 'qwen2_5_vl', 'smolvlm']}
no_thoughts = {'cohere', 'cohere2', 'gemma', 'gemma3', 'gemma4', 'gemma4_v2', 'gemma4_v3', 'gemma4_v4', 'idefics3', 'lfm2', 'lfm2_v2', 'llama3', 'llama3_1',
               'llama3_2', 'llava_next', 'phi3', 'phi3_5', 'qwen2_5', 'qwen2_5_vl', 'qwen3_instruct_2507', 'qwen3_vl', 'smolvlm'}

@pytest.mark.parametrize('name', stock)
def test_stock_template(name):
    "Right token by token, or rejected with the reason, or named where a field is not printed"
    said = {kind: verdict(name, kind) for kind in stock_talks}
    assert said['two turns']=='right' and len(stock)==41
    assert {kind for kind,v in said.items() if v.startswith('rejected')}=={kind for kind,names in rejected.items() if name in names}
    assert ('reasoning_content of role assistant' in said['reasoning'])==(name in no_thoughts)

@pytest.mark.parametrize('name', ['qwen3', 'llama3_1'])
def test_a_prompt_with_tools_is_what_was_trained(name):
    "A record with tools, asked as the samples of a run and `learn.predict` ask: the ids before its answer in training"
    name = next(n for n in stock if n.startswith(name))
    tok,(messages,tools) = tokenizer_for(name),stock_talks['tools']
    record = dict(messages=messages[:2], tools=tools)
    ex = chat_examples(record['messages'], tok, tools=tools)[0]
    n = (ex['labels']!=-100).nonzero()[0].item()
    for prompt in (stages['sft'].prompt(record), prompt_of(record)):
        assert encode_prompt(prompt, tok)==ex['input_ids'][:n].tolist()!=encode_prompt(record['messages'][:1], tok)
        assert answer_example(prompt, 'Yes.', tok, True)['input_ids'][:n].tolist()==ex['input_ids'][:n].tolist()
