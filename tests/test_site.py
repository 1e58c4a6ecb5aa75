"What can be held about the site without Quarto"
import os, re
import pytest, yaml
from fastcore.nbio import nb_frontmatter, read_nb
from nbdev.config import nbpath2html
from chores import clone, nbdev, root

nbs = root/'nbs'
pages = sorted(p.relative_to(nbs).as_posix() for p in nbs.rglob('*.ipynb'))
pages = [p for p in pages if not re.search(r'(^|/)[._]', p)]  # as nbdev does
each_page = pytest.mark.parametrize('page', pages)

def sidebar(contents):
    "The pages of a sidebar, in its order"
    for o in contents:
        if isinstance(o, str): yield o
        else: yield from sidebar(o['contents'])

def test_every_page_once_in_the_sidebar():
    site = yaml.safe_load((root/'_quarto.yml').read_text())['website']
    assert sorted(sidebar(site['sidebar']['contents'])) == pages

def test_no_two_pages_share_an_address():
    urls = [str(nbpath2html(p)) for p in pages]
    assert len(set(urls)) == len(urls), urls

@each_page
def test_title_and_one_line(page):
    fm = nb_frontmatter(read_nb(nbs/page))
    assert fm.get('title') and fm.get('description'), 'the first cell is `# Title` and `> one line`'

@each_page
def test_metadata(page):
    meta = read_nb(nbs/page).metadata
    assert meta.get('kernelspec', {}).get('name') == 'python3', 'JupyterLab would ask for a kernel'
    assert 'widgets' not in meta, 'a progress bar was saved'

@each_page
def test_no_stored_error(page):
    outs = [(c.id, o) for c in read_nb(nbs/page).cells for o in c.get('outputs', [])]
    assert not [i for i,o in outs if o['output_type'] == 'error']

@each_page
def test_no_path_of_a_machine(page):
    "Saved outputs name no folder of the machine that they were made on"
    outs = [str(o) for c in read_nb(nbs/page).cells for o in c.get('outputs', [])]
    assert not [m[0] for o in outs for m in [re.search(r'/(home|root|work|Users)/[\w.-]+/[\w./-]+', o)] if m]

@each_page
def test_environment_is_put_back(page):
    "nbdev-test runs several pages in one process: what one leaves in the environment, the next ones find"
    src = '\n'.join(c.source for c in read_nb(nbs/page).cells if not re.match(r'#\| *export', c.source))
    assert not re.search(r'os\.environ *\|=|os\.environ\.(update|setdefault)', src), 'use mock.patch.dict(os.environ, …)'
    def names(before, after=''): return set(re.findall(f"{before}os\\.environ\\['(\\w+)'\\]{after}", src, flags=re.M))
    assert names('^ *', ' *=') <= names('del ')
    assert len(re.findall(r'\benv\.start\(\)', src)) == len(re.findall(r'\benv\.stop\(\)', src))

def links(md):
    "Where the Markdown links and images of `md` lead within the project"
    md = re.sub(r'^(```|~~~).*?^\1|`[^`\n]*`', '', md, flags=re.M|re.S)
    return [u for u in re.findall(r'\]\(\s*<?([^)\s>]+)', md) if not re.match(r'\w+:|#', u)]

@each_page
def test_page_links(page):
    md = '\n'.join(c.source for c in read_nb(nbs/page).cells if c.cell_type == 'markdown')
    for u in links(md):
        to = ((nbs/page).parent/u.split('#')[0]).resolve()
        assert to.is_file() and nbs in to.parents, f'{page}: {u} is not a file of the site'

@pytest.mark.parametrize('md', ['README.md', 'CONTRIBUTING.md'])
def test_top_level_links(md):
    for u in links((root/md).read_text(encoding='utf-8')): assert (root/u.split('#')[0]).is_file(), f'{md}: {u}'

@pytest.fixture(scope='module')
def proc(tmp_path_factory):
    "The pages as nbdev processes them for both builders"
    top = tmp_path_factory.mktemp('site')
    clone(top, 'nbs', 'lmft', 'docs', 'pyproject.toml', '_quarto.yml')
    stub = top/'bin/quarto'
    stub.parent.mkdir()
    stub.write_text('#!/bin/sh\n')
    stub.chmod(0o755)
    env = {**os.environ, 'PATH': f"{stub.parent}:{os.environ['PATH']}", 'PYTHONPATH': 'docs', 'OMP_NUM_THREADS': '1'}
    run = nbdev('proc-nbs', top, '--n-workers', '2', env=env, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-600:]
    return top/'_proc'

def source(cells): return '\n'.join(c.source for c in cells)

def test_proc_nbs(proc):
    "nbdev makes every page ready for Quarto, which reads what follows `#|` as YAML: a bare directive would be printed"
    assert (proc/'_quarto.yml').read_text() == (root/'_quarto.yml').read_text()
    for page in pages:
        cells = read_nb(proc/page).cells
        assert not re.search(r'^#\|[^:\n]*$', source(cells), flags=re.M), page
        assert not re.search(r'^#\|', source(c for c in cells if c.cell_type=='markdown'), flags=re.M), page

def test_what_is_announced_is_there(proc):
    "A paragraph that ends in a colon is followed by code or by an output, not by text or by a hidden cell"
    for page in pages:
        cells = [c for c in read_nb(proc/page).cells if not c.source.startswith('<!--')]
        for c,after in zip(cells, cells[1:]):
            if c.cell_type!='markdown' or not c.source.rstrip().endswith(':'): continue
            shown = after.cell_type=='code' and ('echo: false' not in after.source or after.outputs)
            assert shown, f'{page}: nothing follows "{c.source[-80:]}"'

def test_outputs_stand_alone(proc):
    "Quarto adds scripts of others for HTML and widgets, and hides names below executed cells; each plot has a text"
    for page in pages:
        nb = read_nb(proc/page)
        assert 'widgets' not in nb.metadata and not any('execution' in c.metadata for c in nb.cells), page
        for c in nb.cells:
            kinds = {k for o in c.get('outputs', []) for k in o.get('data', {})}
            assert 'text/html' not in kinds, page
            assert 'image/png' not in kinds or re.search(r'^#\| fig-alt: ".+"$', c.source, flags=re.M), page

def test_options_of_commands_and_builders(proc):
    "Each has a row with its help, those that stand in `lmft.stages.defaults` too"
    from inspect import signature
    from lmft.commands import commands
    from lmft.stages import builders
    fs = [*commands.values(), *(getattr(builders, k) for k in builders.__all__ if k.endswith('_learner'))]
    outs = [o for p in pages for c in read_nb(proc/p).cells for o in c.get('outputs', [])]
    md = [''.join(o.get('data', {}).get('text/markdown', '')) for o in outs]
    for f in fs:
        shown = [o for o in md if f'### {f.__name__}\n' in o]
        assert shown, f.__name__
        for k,p in signature(f).parameters.items():
            if p.kind is p.VAR_KEYWORD: continue
            assert any(re.search(rf'^\| \*\*{k}\*\* \|.*\| \S.* \|$', o, flags=re.M) for o in shown), (f.__name__, k)

def test_links_of_names(proc):
    "A name in backticks links to its page, a word of the shell or a private name to none"
    md = '\n'.join(source(read_nb(proc/p).cells) for p in pages)
    assert '[`read_records`](https://lmft-org.github.io/lmft/reference/records.html#read_records)' in md
    assert not re.search(r'\[`_\w+`\]|\[`make`\]\((?!.*commands\.html)', md)
