"Which tokens of a conversation are trained, against renderings written by hand with ⟦ ⟧ around what must be trained"
import re
from functools import lru_cache

import pytest
from tokenizers.processors import TemplateProcessing

from lmft.data.batches import chat_example
from lmft.data.tokenizers import train_tokenizer
from lmft.core import LmftError

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

# begin token, end token, other control tokens; the stop token of an answer is the last of the row
controls = dict(chatml=(None, '<|endoftext|>', '<|im_start|>', '<|im_end|>'),
                llama3=('<|begin_of_text|>', '<|end_of_text|>', '<|start_header_id|>', '<|end_header_id|>',
                        '<|eot_id|>'),
                mistral=('<s>', '</s>'),
                gemma=('<bos>', '<eos>', '<start_of_turn>', '<end_of_turn>'))

def put_marks(template, how):
    return template.translate(dict(zip(map(ord, '«»¦'), marks[how])))

@lru_cache
def new_tok(kind):
    "A tokenizer with the control tokens of a template; it puts the begin token before plain texts by itself"
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

def n_bytes(t, tok):
    "Bytes of a token's written form, which has a character a byte unless the token is special"
    return len(t.encode()) if t in tok.all_special_tokens else len(t)

def expected(marked, tok):
    "Ids of the text, and which tokens hold a byte between ⟦ and ⟧"
    trained,on = [],False
    for piece in re.split('([⟦⟧])', marked):
        if piece in ('⟦', '⟧'): on = piece=='⟦'
        else: trained += [on]*len(piece.encode())
    ids,mask,at = tok(re.sub('[⟦⟧]', '', marked), add_special_tokens=False).input_ids,[],0
    for t in tok.convert_ids_to_tokens(ids):
        mask.append(any(trained[at:at+n_bytes(t, tok)]))
        at += n_bytes(t, tok)
    assert at==len(trained)
    return ids, mask

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

def trained_spans(ex, tok):
    "Texts of the trained runs"
    spans,on = [],False
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
    ex = chat_example(as_messages(talks['multi']), tok)
    assert tok.decode(ex['input_ids'])==re.sub('[⟦⟧]', '', literal[kind])
    lead = ' ' if kind=='mistral' else ''
    assert trained_spans(ex, tok)==[f'{lead}{a}{stop}' for a in ('Hello, you!', 'Fine.', 'See you')]

@pytest.mark.parametrize('talk', talks)
@pytest.mark.parametrize('how', marks)
@pytest.mark.parametrize('kind', templates)
def test_token_by_token(kind, how, talk):
    tok,(bos,*_,stop) = tok_with(kind, how),controls[kind]
    ids,mask = expected(by_hand(kind, talks[talk]), tok)
    ex = chat_example(as_messages(talks[talk]), tok)
    assert ex['input_ids'].tolist()==ids
    names = tok.convert_ids_to_tokens(ids)
    assert list(zip(names, (ex['labels']!=-100).tolist()))==list(zip(names, mask))
    assert all(l in (i, -100) for i,l in zip(ids, ex['labels'].tolist()))
    trained = ex['labels'].tolist()
    assert trained.count(tok.convert_tokens_to_ids(stop))==sum(r=='assistant' for r,_ in talks[talk])
    if bos: assert ids.count(tok.bos_token_id)==1 and trained[0]==-100

@pytest.mark.parametrize('how', marks)
def test_control_tokens_that_are_not_the_stop(how):
    "Nothing but an answer's own stop token is trained among the control tokens, whatever stands beside it"
    tok = tok_with('chatml', how)
    tok.chat_template = tok.chat_template.replace("{{ '\\n' }}", "{{ '<|endoftext|>\\n' }}")
    ex = chat_example(as_messages(talks['multi']), tok)
    assert trained_spans(ex, tok)==[a+'<|im_end|>' for a in ('Hello, you!', 'Fine.', 'See you')]

@pytest.mark.parametrize('how', marks)
def test_space_before_the_stop(how):
    "Llama 2 writes a space between answer and stop token, which the model has to write as well"
    tok = tok_with('mistral', how)
    tok.chat_template = tok.chat_template.replace('{{ eos_token }}', "{{ ' ' + eos_token }}")
    spans = trained_spans(chat_example(as_messages(talks['multi']), tok), tok)
    assert spans==[' Hello, you! </s>', ' Fine. </s>', ' See you </s>']

# A template that takes the thoughts out of all turns but the last
forgetful = templates['chatml'].replace(
    "«{{ m['content'] }}", "«{{ m['content'] if loop.last else m['content'].split('</think>')[-1] }}")
thoughts = turns('1+1?', '<think>easy</think>2', 'And 2+2?', '<think>hm</think>4')

def test_rewriting_template():
    tok = new_tok('chatml')
    tok.chat_template = put_marks(forgetful, 'plain')
    with pytest.raises(LmftError, match='rewrites'): chat_example(as_messages(thoughts), tok)
    assert trained_spans(chat_example(as_messages(thoughts[2:]), tok), tok)==['<think>hm</think>4<|im_end|>']
    tok.chat_template = put_marks(forgetful, 'marked')
    assert trained_spans(chat_example(as_messages(thoughts), tok), tok)==['2<|im_end|>', '<think>hm</think>4<|im_end|>']

@pytest.mark.parametrize('how', marks)
@pytest.mark.parametrize('talk', ['single', 'multi'])
def test_template_without_stop(how, talk):
    tok = new_tok('chatml')
    tok.chat_template = put_marks("""{% for m in messages %}{{ m['role'] + ': ' }}{% if m['role'] == 'assistant' %}\
«{{ m['content'] }}»{{ '' }}¦{% else %}{{ m['content'] }}{% endif %}{{ '\n' }}{% endfor %}\
{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}""", how)
    with pytest.raises(LmftError, match='stop token'): chat_example(as_messages(talks[talk]), tok)

def test_template_without_generation_prompt():
    "Where an answer begins cannot be known, so its header would be trained as if it were the answer"
    tok = tok_with('chatml', 'plain')
    tok.chat_template = tok.chat_template.partition('{% if add_generation_prompt')[0]
    with pytest.raises(LmftError): chat_example(as_messages(talks['multi']), tok)
    tok.chat_template = put_marks(templates['chatml'], 'marked').partition('{% if add_generation_prompt')[0]
    assert len(trained_spans(chat_example(as_messages(talks['multi']), tok), tok))==3

def test_several_templates():
    "A tokenizer may hold a dict of templates, of which `default` is for chat"
    tok = tok_with('chatml', 'marked')
    one = chat_example(as_messages(talks['multi']), tok)
    tok.chat_template = dict(default=tok.chat_template, tool_use='{{ 1 }}')
    assert chat_example(as_messages(talks['multi']), tok)['labels'].tolist()==one['labels'].tolist()

@pytest.mark.parametrize('talk,why', [(turns('Hi'), 'no assistant'), (turns('Hi', 'a<|im_end|>b'), 'control token'),
                                      (turns('<|im_start|>system\n', 'no'), 'control token')])
def test_refused(talk, why):
    with pytest.raises(LmftError, match=why): chat_example(as_messages(talk), tok_with('chatml', 'marked'))

def test_roles_that_the_template_refuses():
    talk = as_messages([*turns('Hi', 'a'), ('assistant', 'b')])
    with pytest.raises(LmftError, match='must alternate'): chat_example(talk, tok_with('mistral', 'plain'))
