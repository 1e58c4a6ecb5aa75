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

def test_proc_nbs(tmp_path):
    "nbdev makes every page ready for Quarto, which reads what follows `#|` as YAML: a bare directive would be printed"
    clone(tmp_path, 'nbs', 'lmft', 'pyproject.toml', '_quarto.yml')
    stub = tmp_path/'bin/quarto'
    stub.parent.mkdir()
    stub.write_text('#!/bin/sh\n')
    stub.chmod(0o755)
    env = {**os.environ, 'PATH': f"{stub.parent}:{os.environ['PATH']}", 'OMP_NUM_THREADS': '1'}
    run = nbdev('proc-nbs', tmp_path, '--n-workers', '2', env=env, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-600:]
    assert (tmp_path/'_proc/_quarto.yml').read_text() == (root/'_quarto.yml').read_text()
    for page in pages:
        src = '\n'.join(c.source for c in read_nb(tmp_path/'_proc'/page).cells)
        assert not re.search(r'^#\|[^:\n]*$', src, flags=re.M), page
