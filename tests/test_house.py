"Folders import only what stands above them, and nobody takes another module's private names"
import ast, json, re
from pathlib import Path
import pytest
from chores import root

floors = [{'core'}, {'data', 'world'}, {'models'}, {'generation'}, {'train'}, {'check'}, {'stages'}, {'evals'}, {'runs', 'tour', 'reports'},
          {'training', 'commands'}, {'cli'}]
light = {'all', 'options', 'progress', 'stages.defaults'}                  # import nothing heavy; anybody may use them
modules = sorted(p for p in (root/'lmft').rglob('*.py') if p.name not in ('__init__.py', '_modidx.py'))
each = pytest.mark.parametrize('path', modules, ids=lambda p: str(p.relative_to(root)))

def name_of(path): return '.'.join(path.relative_to(root/'lmft').with_suffix('').parts)
def floor(module): return next((i for i,f in enumerate(floors) if module.split('.')[0] in f), None)

def imported(path):
    "(module within lmft, name) of each import of ours"
    for n in ast.walk(ast.parse(path.read_text())):
        if not isinstance(n, ast.ImportFrom) or not n.level: continue
        base = ['lmft', *name_of(path).split('.')][:-n.level]
        module = '.'.join([*base, *([n.module] if n.module else [])]).removeprefix('lmft').lstrip('.')
        for a in n.names:
            whole = f'{module}.{a.name}'.lstrip('.')
            yield (whole, '') if (root/'lmft'/Path(*whole.split('.'))).with_suffix('.py').exists() else (module, a.name)

@each
def test_imports_go_up(path):
    me = name_of(path)
    for module,_ in imported(path):
        if module in light or me in light: continue
        assert floor(module) is not None and floor(module)<=floor(me), f'{me} imports {module}'

@each
def test_no_private_names_of_others(path):
    assert not [f'{m}.{n}' for m,n in imported(path) if n.startswith('_')]

long_modules = set("""builders callbacks checkpoints classification commands doctor documents estimate facts judge learner loading ondisk ppo probe
runs table tasks tour""".split())                                   # each could be cut in two only in the middle of one subject

@each
def test_a_module_is_not_long(path):
    n = len(path.read_text().splitlines())
    assert n<=(900 if path.stem in long_modules else 300), n

lessons = sorted((root/'nbs/learn').glob('*.ipynb'))+sorted((root/'nbs/tutorials').glob('*.ipynb'))

@pytest.mark.parametrize('path', lessons, ids=lambda p: p.stem)
def test_every_fit_of_a_lesson_is_seen(path):
    "No lesson silences a training; the table of each fit is in the saved page, also of a tutorial"
    for i,c in enumerate(json.loads(path.read_text(encoding='utf-8'))['cells']):
        source = ''.join(c['source'])
        if c['cell_type']!='code' or re.match(r'#\| *(export|hide)', source): continue
        assert path.parent.name!='learn' or not re.search(r'no_bar|no_logging|redirect_std', source), i
        if re.search(r'^\w+\.fit(_\w+)?\(', source, flags=re.M) and not re.search(r'#\| *(slow|gpu)', source): assert c['outputs'], i
