"The 41 chat templates that TRL installs, four conversations, and what an answer is in each, written down by hand"
import json, re
from functools import lru_cache
from pathlib import Path

import trl
from jinja2 import Environment
from lmft.core import LmftError
from lmft.data.certificate import same_tokens, unprinted
from lmft.data.chat import chat_examples
from lmft.data.tokenizers import train_tokenizer

stock = {p.stem: p.read_text() for p in sorted((Path(trl.__file__).parent/'chat_templates').glob('*.jinja')) if 'training' not in p.stem}

_control = re.compile(r'<[|｜][^<>\s\']{1,40}?[|｜]>|<(?:bos|start_of_turn|end_of_turn|turn\||\|turn|end_of_utterance|\|channel|channel\||\|tool_call|'
                      r'tool_call\||\|tool_response|tool_response\||\|tool|tool\||/s|sop)>|\[gMASK\]|\[/?INST\]|<\|"\|>')

@lru_cache
def tokenizer_for(name):
    "A small tokenizer with the special tokens of a template; it puts no BOS token by itself"
    tok = train_tokenizer(['Where is the cat? It sits here. user assistant system\n\nYou are kind. {"name": "look_up"} thinking of it.']*3, 400)
    bos,eos = next((v for k,v in dict(deepseek=('<｜begin▁of▁sentence｜>', '<｜end▁of▁sentence｜>'), llava=('<s>', '</s>'), llama=('<|begin_of_text|>', '<|eot_id|>'),
                                      qwen=('', '<|im_end|>')).items() if k in name), ('<bos>', '<|endoftext|>'))
    more = [t for t in sorted(set(_control.findall(stock[name]))) if t not in (bos, eos)]
    tok.add_special_tokens(dict(eos_token=eos, extra_special_tokens=more, **({'bos_token': bos} if bos else {})))
    tok.chat_template = stock[name]
    return tok

def said(role, content, **kw): return dict(role=role, content=content, **kw)
asked = [said('user', 'Where is the cat?'), said('assistant', 'It sits here.'), said('user', 'And now?'), said('assistant', 'Here it sits.')]
call = dict(id='abc123def', type='function', function=dict(name='look_up', arguments=dict(q='cat')))
tool = dict(type='function', function=dict(name='look_up', description='Looks it up', parameters=dict(
    type='object', properties=dict(q=dict(type='string', description='What')), required=['q'])))
talks = {'two turns': (asked, None), 'system': ([said('system', 'You are kind.'), *asked], None),
         'tools': ([asked[0], said('assistant', '', tool_calls=[call]), said('tool', 'on the mat', tool_call_id='abc123def', name='look_up'), *asked[1:]], [tool]),
         'reasoning': ([dict(m, reasoning_content=f'thinking of {i}') if i%2 else m for i,m in enumerate(asked)], None)}

# What stands between the generation prompt and an answer, what a thought makes of it, and the end of an answer
_head = {'deepseek': '\n</think>\n\n', 'glm': '\n<think></think>\n', 'gptoss': '<|channel|>final<|message|>', 'idefics|smolvlm|llava': ' ',
         'muse': ' to=user<|message|>', 'nemotron': '</think>', 'qwen3$': '<think>\n\n</think>\n\n', 'qwen3_(5_think|6|8)': '\n</think>\n\n', '': ''}
_thought = {'deepseek|qwen3_(5_think|6|8)': '{}\n</think>\n\n', 'diffusion|gemma4_v5': '<|channel>thought\n{}\n<channel|>', 'glm': '\n<think>{}</think>\n',
            'gptoss': '<|channel|>analysis<|message|>{}<|end|><|start|>assistant<|channel|>final<|message|>', 'lfm2_2_5': '<think>{}</think>',
            'muse': ' to=self<|message|>{}<|eom|><|start|>assistant to=user<|message|>', 'nemotron.*(nano|super)': '{}\n</think>\n', 'nemotron': '{}</think>',
            'qwen3$': '<think>\n{}\n</think>\n\n'}
_end = {'cohere2': '<|END_RESPONSE|><|END_OF_TURN_TOKEN|>', 'cohere': '<|END_OF_TURN_TOKEN|>', 'deepseek': '<｜end▁of▁sentence｜>', 'gemma4|diffusion': '<turn|>',
        'gemma': '<end_of_turn>', 'glm': '<|user|>', 'gptoss': '<|return|>', 'idefics|smolvlm': '<end_of_utterance>', 'llama': '<|eot_id|>', 'llava': '</s>',
        'muse': '<|eot|>', 'phi': '<|end|>', '': '<|im_end|>'}
_json,_xml = '{"name": "look_up", "%s": {"q": "cat"}}','<tool_call>\n<function=look_up>\n<parameter=q>\ncat\n</parameter>\n</function>\n</tool_call>'
_deepseek = '\n</think>\n\n<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>look_up\n```json\n{"q": "cat"}\n```<｜tool▁call▁end｜>'
_call = {'deepseekv3': _deepseek+'<｜tool▁calls▁end｜><｜end▁of▁sentence｜>', 'deepseek': _deepseek,
         'gemma4_v2': '<|tool_call>call:look_up{q:<|"|>cat<|"|>}<tool_call|><turn|>', 'gemma4|diffusion': '<|tool_call>call:look_up{q:<|"|>cat<|"|>}<tool_call|><|tool_response>',
         'glm': '\n<think></think>\n<tool_call>look_up\n<arg_key>q</arg_key>\n<arg_value>cat</arg_value>\n</tool_call><|observation|>',
         'gptoss': ' to=functions.look_up<|channel|>commentary json<|message|>{"q": "cat"}<|call|>',
         'lfm2_(2|v2)': "<|tool_call_start|>[look_up(q='cat')]<|tool_call_end|><|im_end|>", 'llama3_': _json%'parameters'+'<|eot_id|>',
         'muse': ' to=look_up<|message|><atem:function_calls>\n<atem:invoke name="look_up">\n<atem:parameter name="q">cat</atem:parameter>\n</atem:invoke>\n'
                 '</atem:function_calls><|eot|>',
         'nemotron': '</think>\n'+_xml+'\n<|im_end|>', 'qwen3$': '<think>\n\n</think>\n\n<tool_call>\n'+_json%'arguments'+'\n</tool_call><|im_end|>',
         'qwen2_5$|qwen3_(instruct|vl)': '<tool_call>\n'+_json%'arguments'+'\n</tool_call><|im_end|>', 'qwen3_5_nothink': _xml+'<|im_end|>',
         'qwen3_(5|6|8)': '\n</think>\n\n'+_xml+'<|im_end|>'}

def of(table, name): return next((v for k,v in table.items() if re.match(k, name)), None)

def by_hand(name, messages, i):
    "The text of answer `i` with its stop token"
    m,after_tool = messages[i],messages[i-1]['role']=='tool'
    if 'tool_calls' in m: return of(_call, name)
    head = of(_head, name)
    if after_tool and 'deepseek' in name: head = ''
    if after_tool and 'diffusion' in name: head = '<|turn>model\n'
    if 'reasoning_content' in m and of(_thought, name): head = of(_thought, name).format(m['reasoning_content'])
    return head+m['content']+of(_end, name)

def dressed(name, m):
    "A message as the template wants it, as its model card says"
    if re.match('idefics|smolvlm|llava', name): return dict(m, content=[dict(type='text', text=m['content'])])
    if 'tool_calls' not in m: return m
    if 'deepseek' not in name: return m
    m = dict(m, tool_calls=[dict(call, function=dict(name='look_up', arguments=json.dumps(call['function']['arguments'])))])
    return dict(m, content=None)

def expected(name, messages, tools, i):
    "Ids of the prompt, by 🤗's own method, and of the answer"
    tok = tokenizer_for(name)
    before = [dressed(name, m) for m in messages[:i]]
    if any(m['content'] is None for m in before):                        # 🤗's method takes a content of None out, which DeepSeek asks for
        prompt = Environment().from_string(stock[name]).render(messages=before, tools=tools, add_generation_prompt=True, **tok.special_tokens_map)
    else: prompt = tok.apply_chat_template(before, tools=tools, add_generation_prompt=True, tokenize=False)
    def ids(text): return tok(text, add_special_tokens=False).input_ids
    before,whole = ids(prompt),ids(prompt+by_hand(name, messages, i))
    return before, whole[len(before):] if whole[:len(before)]==before else ids(by_hand(name, messages, i))

def verdict(name, kind):
    "'right', 'right, and named: …' where the template leaves something out, or 'rejected: …'; an AssertionError if something is wrong"
    tok,(messages,tools) = tokenizer_for(name),talks[kind]
    answers = [i for i,m in enumerate(messages) if m['role']=='assistant']
    same = same_tokens(messages, tok, tools=tools)
    try: exs = chat_examples(messages, tok, tools=tools)
    except LmftError as e:
        assert not all(d['same'] for d in same)
        return f'rejected: {e}'
    truth = [expected(name, messages, tools, i) for i in answers]
    for (prompt,answer),e in zip(truth, exs*(len(truth) if len(exs)==1 else 1), strict=True):
        assert e['input_ids'].tolist()[:len(prompt)+len(answer)]==prompt+answer, (tok.decode(e['input_ids']), tok.decode(prompt+answer))
        assert e['labels'].tolist()[len(prompt):len(prompt)+len(answer)]==answer
    assert sum((e['labels']!=-100).sum() for e in exs)==sum(len(a) for _,a in truth)                           # and nothing else
    lost = unprinted(messages, tok, tools=tools)
    assert all(d['same'] for d in same)==(not any('assistant' in l for l in lost))
    return f"right, and named: {', '.join(lost)}" if lost else 'right'

def table():
    "A row a template, a column a conversation"
    return {name: {kind: verdict(name, kind) for kind in talks} for name in stock}
