"Prose, docstrings, comments, messages and names use the words of the field: no page says what only lmft would say"
import ast, io, json, re, tokenize
import pytest
from chores import root

# What nobody else in this field says → what to write
instead = {
    r'(begin|end) tokens?': 'BOS or EOS token', r'control tokens?': 'special token', r'token vectors?': 'embeddings',
    r'rehears\w*': 'dry run (rehearsal means replay of old data here)', r'refus(e|es|ed|ing)': 'reject', r'mend(s|ed|ing)?': 'fix, or hint',
    r'commonest': 'most frequent; majority class', r'seams?': 'boundary of prompt and completion', r'(solved|shown) examples?': 'few-shot demonstrations',
    r'held against': 'compared with', r'(thin )?doors? (to|of) (lmft|the library)': 'entry point', r'figures (of|before|after|that)': 'metrics, or numbers',
    r'(go|goes|going|went|gone) on with': 'continue', r'(?<!learning )(?<!same )rates? (of|that) (training|tuning|pretraining)': 'learning rate',
    r'price of a nat|KL price': 'KL coefficient', r'(a|the|each|every|one) draws?': 'sample', r'nsp pieces|joined pieces': 'segments',
    r'trained tokens?': 'tokens in the loss', r'window of accumulation|accumulation windows?': 'accumulation group', r'one task in two dresses': 'plain words',
    r'cop(y|ies) the mate|mate task': 'sibling task', r'not dear|too dear|dearer': 'expensive', r'is dear': 'is expensive'}
pattern = re.compile('|'.join(rf'(?P<w{i}>\b(?:{p})\b)' for i,p in enumerate(instead)), re.I)
world = {'facts', 'documents', 'judge', 'tasks'}                                  # text of the tiny world, where doors may be green
pages = [p for p in sorted((root/'nbs').rglob('*.ipynb')) if not re.search(r'/[._]|/out/', str(p.relative_to(root))) and p.stem not in world]

def said(source):
    "Comments and text of a code cell: what a reader reads, names left out"
    try: toks = [*tokenize.generate_tokens(io.StringIO(source).readline)]
    except (tokenize.TokenError, IndentationError, SyntaxError): return source
    return '\n'.join(t.string for t in toks if t.type in (tokenize.COMMENT, tokenize.STRING, getattr(tokenize, 'FSTRING_MIDDLE', -1)))

def found(text):
    "Each word that is not of the field, with what to write"
    text = re.sub(r'`[^`]*`|\]\([^)]*\)', ' ', text)
    return [f'{m[0]!r}: write {[*instead.values()][int(m.lastgroup[1:])]}' for m in pattern.finditer(text)]

def words_of(page):
    cells = json.loads(page.read_text(encoding='utf-8'))['cells']
    for i,c in enumerate(cells):
        text = ''.join(c['source'])
        for line in found(said(text) if c['cell_type']=='code' else text): yield f'cell {i}: {line}'

@pytest.mark.parametrize('page', pages, ids=lambda p: str(p.relative_to(root/'nbs')))
def test_words_of_the_field(page): assert not [*words_of(page)]

def test_the_lint_finds_them():
    assert found('The end token is refused.')==["'end token': write BOS or EOS token", "'refused': write reject"]
    assert not found('It recommends a rejected answer, and `--mend` is code.') and found(said("x = 1  # begin token"))
