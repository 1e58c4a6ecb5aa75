"What `make` needs of Python: `python tests/chores.py in_step | readme | bases`."
import json, re, subprocess, sys
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
    "The base models that the lessons start from, one after the other with all cores"
    from lmft.pretraining import bases, make_base
    for kind in bases: make_base(kind)

if __name__ == '__main__':
    match sys.argv[1:]:
        case ['in_step']:
            if lines := list(out_of_step()): sys.exit('\n'.join(lines))
        case ['readme']: (root/'README.md').write_text(readme(), encoding='utf-8')
        case ['bases']: bases()
        case _: sys.exit(__doc__)
