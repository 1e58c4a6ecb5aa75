"What `make` needs of Python: `python tests/chores.py in_step | readme | bases | imports | claims [ID]`."
import ast, hashlib, json, os, re, subprocess, sys
from importlib.util import resolve_name
from pathlib import Path
from shutil import copy, copytree, ignore_patterns
from tempfile import TemporaryDirectory

root = Path(__file__).resolve().parent.parent

def nbdev(cmd, cwd, *args, **kw):
    "Run `nbdev-{cmd}` of this Python's environment in `cwd`"
    return subprocess.run([Path(sys.executable).with_name(f'nbdev-{cmd}'), *args], cwd=cwd, **kw)

def clone(to, *names):
    "Copy the top-level `names` to the folder `to`, without caches and outputs"
    for o in names:
        if (root/o).is_dir(): copytree(root/o, to/o, symlinks=True, ignore=ignore_patterns('__pycache__', '.*', 'out'))
        else: copy(root/o, to/o)

def generated(top):
    "Every file that `nbdev-export` or `nbdev-clean` may write below `top`, by its name there"
    fs = [*top.glob('lmft/**/*.py'), *top.glob('nbs/**/*.ipynb'), top/'nbs/llms.txt']
    return {str(f.relative_to(top)): f.read_bytes() for f in fs if f.exists() and '/.' not in str(f.relative_to(top))}

def out_of_step():
    "A line for each file that `nbdev-export` and `nbdev-clean` would change, tried in a copy: the tree stays as it is"
    with TemporaryDirectory() as tmp:
        tmp = Path(tmp)
        clone(tmp, 'nbs', 'lmft', 'pyproject.toml')
        for f in tmp.glob('lmft/**/*.py'):
            if not f.name.startswith('__'): f.unlink()  # export alone would leave a module whose notebook is gone
        for cmd in 'export','clean': nbdev(cmd, tmp, check=True)
        have, want = generated(root), generated(tmp)
    for f in sorted({*have, *want}):
        if f not in want: yield f'{f}: no notebook exports it; delete it'
        elif have.get(f) == want[f]: pass
        elif f.endswith('.ipynb'): yield f'{f}: not clean; run nbdev-clean'
        else: yield f'{f}: not what the notebooks export; run nbdev-export (or nbdev-update, if you edited the module)'

def readme():
    "`nbs/index.ipynb` as Markdown, without hidden cells and nbdev's directives, its links seen from the top"
    import nbformat
    from nbconvert import MarkdownExporter
    nb = nbformat.read(root/'nbs/index.ipynb', as_version=4)
    nb.cells = [c for c in nb.cells if not re.match(r'#\| *(hide|exporti?)\b', c.source) or c.cell_type == 'markdown']
    for c in nb.cells: c.source = re.sub(r'\A(#\|.*\n)+', '', c.source)
    md, _ = MarkdownExporter().from_notebook_node(nb)
    md = re.sub(r'\]\((?!\w+:|#)', '](nbs/', md).strip()
    return f'<!-- Made from nbs/index.ipynb by `make readme` -->\n\n{md}\n'

def bases():
    "The base models that the lessons start from, and the chat model, one after the other with all cores"
    from lmft.stages.instructions import make_chat
    from lmft.stages.bases import bases, make_base
    for kind in bases: make_base(kind)
    make_chat()

def imports():
    "Import every module of lmft, and say which versions do so"
    import lmft
    from importlib import import_module
    from importlib.metadata import version
    from pkgutil import walk_packages
    for m in walk_packages(lmft.__path__, 'lmft.'): import_module(m.name)
    print(*(f'{lib} {version(lib)}' for lib in 'torch transformers peft datasets fastai fastcore numpy pandas'.split()), sep=', ')

def claim_pages(id=None):
    "Notebooks that measure the claim `id`, or any claim, in reading order"
    import nbformat
    pages = [p for p in sorted((root/'nbs').rglob('*.ipynb')) if not re.search(r'/[._]', str(p.relative_to(root)))]
    name = re.escape(id) if id else r'[\w-]+'
    call = re.compile(rf"^\s*claim\(\s*'{name}'", flags=re.M)
    found = [str(p.relative_to(root)) for p in pages
             if any(c.cell_type == 'code' and call.search(c.source) for c in nbformat.read(p, as_version=4).cells)]
    return found or sys.exit(f'no lesson holds the claim {id}')

def file_of(module):
    "The file of a module of lmft by its dotted name, or None"
    path = root/module.replace('.', '/')
    return next((f for f in (path.with_suffix('.py'), path/'__init__.py') if f.exists()), None)

def imported(code, package=''):
    "The modules of lmft that a piece of code imports"
    for n in ast.walk(ast.parse(code)):
        if isinstance(n, ast.Import): names = [a.name for a in n.names]
        elif isinstance(n, ast.ImportFrom):
            name = resolve_name('.'*n.level+(n.module or ''), package)
            names = [name, *(f'{name}.{a.name}' for a in n.names)]
        else: continue
        yield from (m for m in names if m.partition('.')[0] == 'lmft' and file_of(m))

def page_code(page):
    "Hash of a page's code and of all modules of lmft that it imports, directly or not; the world's data are made by them"
    import nbformat
    from lmft.stages.bases import code_of
    cells = [c.source for c in nbformat.read(root/page, as_version=4).cells if c.cell_type == 'code']
    found, left = {}, {m for c in cells for m in imported(re.sub(r'^\s*[%!].*$', '', c, flags=re.M))}
    while left:
        m = left.pop()
        code = file_of(m).read_text(encoding='utf-8')
        found[m] = code_of(code)
        left |= {*imported(code, m if file_of(m).name == '__init__.py' else m.rpartition('.')[0])} - {*found}
    return hashlib.sha256(repr((cells, sorted(found.items()))).encode()).hexdigest()[:16]

def ledger_rows(page):
    "File in the ledger → row, of the claims that a page measures and that were measured before"
    ids = re.findall(r"claim\(\s*\\?'([\w-]+)'", (root/page).read_text(encoding='utf-8'))
    return {f: json.loads(f.read_text()) for f in (root/f'nbs/claims/{id}.json' for id in ids) if f.exists()}

def claims(id=None):
    "Measure claims with all seeds, which rewrites the ledger, then run and save the page of all claims"
    for page in claim_pages(id):
        code = page_code(page)
        if not id and (rows := ledger_rows(page)) and all(r.get('code') == code for r in rows.values()):
            print(f'{page}: measured with this code before; `make claims ID={next(iter(rows)).stem}` measures it again')
            continue
        nbdev('test', root, page, '--flags', 'slow', '--cell-timeout', '0', '--do-print', env={**os.environ, 'LMFT_CLAIMS': '1'}, check=True)
        for f, row in ledger_rows(page).items(): f.write_text(json.dumps({**row, 'code': code}, indent=1))
    page = 'nbs/explanations/claims.ipynb'
    nbdev('test', root, page, '--save', check=True)
    nbdev('clean', root, '--fname', page, check=True)

if __name__ == '__main__':
    match sys.argv[1:]:
        case ['in_step']:
            if lines := list(out_of_step()): sys.exit('\n'.join(lines))
        case ['readme']: (root/'README.md').write_text(readme(), encoding='utf-8')
        case ['bases']: bases()
        case ['imports']: imports()
        case ['claims', *id]: claims(*id)
        case _: sys.exit(__doc__)
