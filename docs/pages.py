"What the site needs beyond nbdev: processors for all pages (`doc_procs`), and the pages for Sphinx"
import json, os, re, sys
from pathlib import Path
from shutil import rmtree
import yaml
from fastcore.all import patch
from fastcore.docments import DocmentText, MarkdownRenderer, empty
from fastcore.nbio import mk_cell, read_nb
from lmft.commands import commands
from nbdev.config import get_config, nbpath2html
from nbdev.doclinks import NbdevLookup
from nbdev.processors import Processor

cfg = get_config()
host = f'{cfg.doc_host}{cfg.doc_baseurl}'

def in_table(s):
    "`s` as the text of a cell of a Markdown table"
    parts = str(s).replace('|', r'\|').split('`')
    return '`'.join(o if i%2 else re.sub(r'([*<$])', r'\\\1', o) for i,o in enumerate(parts))

@patch
def _repr_markdown_(self:MarkdownRenderer):
    "The signature, the one line, and a table of all parameters, those of delegates too"
    if not getattr(self.dm, 'has_docment', False): rows,sig = '',self.dm
    else:
        rows = '| parameter | default | what it is |\n|:---|:---|:---------|\n'
        sig = DocmentText(self.sym, docstring=False)
        for k,v in sig.dm.items():
            default = '' if v.default is empty else f'`{getattr(v.default, "__name__", repr(v.default))}`'
            name = '*returns*' if k=='return' else f'**{in_table(k)}**'
            if k!='return' or v.docment: rows += f'| {name} | {in_table(default)} | {in_table(v.docment or "")} |\n'
            v.docment = None                     # it would stand in the signature a second time
    return '\n\n'.join(o for o in (f'```python\n{sig}\n```', self.docs, rows) if o)

class Links(NbdevLookup):
    "nbdev's links of names in backticks, without those that lead elsewhere: what is private, and words of the shell"
    def __init__(self, page):
        super().__init__()
        self.page = page
    def doc(self, sym):
        to = super().doc(sym)
        if not to or sym.split('.')[-1][0]=='_': return
        if sym not in commands or f'/{self.page}#' in to: return to
    def link_line(self, l): return l if l.startswith(('| **', '#')) else super().link_line(l)

class links(Processor):
    "Instead of nbdev's `add_links`"
    def begin(self):
        self.links = Links(nbpath2html(Path(self.nb.path_).resolve().relative_to(cfg.nbs_path.resolve())).as_posix())
    def cell(self, cell):
        if cell.cell_type=='markdown': cell.source = self.links.linkify(re.sub(r'\A(#\|.*\n)+', '', cell.source))
        for o in cell.get('outputs', []):
            data = o.get('data', {})
            if md := data.get('text/markdown'): data['text/markdown'] = self.links.linkify(''.join(md))

class exports(Processor):
    "Instead of nbdev's `rm_export`: code that a sentence announces stays where no table of parameters follows"
    def begin(self): self.before = None
    def cell(self, cell):
        if cell.cell_type=='code' and cell.directives_.keys() & {'export', 'exporti', 'hide', 'default_exp'}:
            told = self.before and self.before.cell_type=='markdown' and self.before.source.rstrip().endswith(':')
            tabled = any(getattr(c, 'has_sd', 0) for c in self.nb.cells[cell.idx_+1:cell.idx_+2])
            if not told or tabled or 'export' not in cell.directives_: del cell['source']
        self.before = cell

class outputs(Processor):
    "No metadata that hides API names from the contents, no JavaScript of others for tables and widgets, a text for each image"
    def begin(self):
        self.said = ''
        self.nb.metadata.pop('widgets', None)
    def cell(self, cell):
        if cell.cell_type=='markdown' and not cell.source.startswith('<!--'): self.said = cell.source
        cell.metadata.pop('execution', None)
        for o in cell.get('outputs', []):
            data = o.get('data', {})
            if 'text/html' in data: data.pop('application/vnd.jupyter.widget-view+json', None)
            if html := data.pop('text/html', None): data['text/markdown'] = '````{=html}\n' + ''.join(html).strip() + '\n````'
            if 'image/png' in data and 'fig-alt' not in cell.source:
                alt = json.dumps(last_sentence(self.said) or 'plot', ensure_ascii=False)
                cell.source = f'#| fig-alt: {alt}\n{cell.source}'

def last_sentence(md):
    "The last sentence of Markdown as plain text"
    md = re.sub(r'\[([^\]]*)\]\([^)]*\)', r'\1', md.strip().split('\n\n')[-1])
    md = re.sub(r'\s+', ' ', re.sub(r'[`*$#>]|\\', '', md)).strip()
    return re.split(r'(?<=[.!?]) ', md)[-1].rstrip(':')

class source(Processor):
    "Where the notebook of a page is, at its end"
    def end(self):
        nb = Path(self.nb.path_).resolve().relative_to(cfg.config_path.resolve()).as_posix()
        hosts = cfg.git_url,cfg.git_url.replace('github.com', 'colab.research.google.com/github')
        at,colab = (f'{o}/blob/{cfg.branch}/{nb}' for o in hosts)
        self.nb.cells.append(mk_cell(
            f'This page is a notebook: [read it on GitHub]({at}), open it in JupyterLab with `make lab`, or [in Colab]({colab}), '
            f'with `%pip install git+{cfg.git_url}` as its first cell.', 'markdown'))

# Sphinx

def slug(s):
    "The anchor of a heading, as Quarto makes it"
    return re.sub(r'^[^a-z]+', '', re.sub(r'\s+', '-', re.sub(r'[^\w\s.-]', '', s.lower()).strip()))

def as_myst(md, page):
    "Markdown for Quarto as MyST, its links within the site as links to files"
    up = '../'*page.count('/')
    md = re.sub(r'(\]\([^)\s]*\))\{[^}\n]*\}', r'\1', md)
    md = re.sub(rf'\]\({re.escape(host.rstrip("/"))}/([^)#]*)\.html', rf']({up}\1.ipynb', md)
    md = re.sub(r'\]\((?!\w+:)([^)#\s]*/)?\d+_(\w+\.ipynb)', r'](\1\2', md).replace('](None', '](')
    return re.sub(r'\A---\n\n(.*\n\n)?(### .*\n)', lambda m: m[2] + '\n' + (m[1] or ''), md)

def cell_options(c):
    "The options of a cell for Quarto, and the cell without them"
    lines = c['source'].splitlines()
    n = next((i for i,l in enumerate(lines) if not l.startswith('#|')), len(lines))
    c['source'] = '\n'.join(lines[n:])
    return yaml.safe_load('\n'.join(l[2:] for l in lines[:n])) or {}

def myst_nb(nb, page, more=''):
    "A processed notebook as myst-nb reads it"
    cells,fm = [],{}
    for c in nb['cells']:
        opts,outs = cell_options(c) if c['cell_type']=='code' else {},c.get('outputs', [])
        for o in outs:
            md = ''.join(o.get('data', {}).get('text/markdown', ''))
            if md.startswith('````{=html}'): o['data'] = {'text/html': md[12:-5], 'text/plain': ''}
        if c['cell_type']=='raw':
            fm = yaml.safe_load(c['source'].strip('-\n'))
            c = mk_cell(f"# {fm['title']}\n\n> {fm['description']}", 'markdown')
        elif opts.get('output')=='asis':
            c = mk_cell('\n\n'.join(''.join(o['data']['text/markdown']) for o in outs), 'markdown')
        if c['cell_type']=='markdown': c['source'] = as_myst(c['source'], page)
        else:
            hide = [f'remove-{k}' for k,o in (('input', 'echo'), ('output', 'output')) if opts.get(o) is False]
            c['metadata'] = dict(tags=hide, mystnb=dict(image=dict(alt=opts['fig-alt'])) if 'fig-alt' in opts else {})
        cells.append(c)
    meta = dict(kernelspec=nb['metadata']['kernelspec'], language_info=dict(name='python', pygments_lexer='ipython3'),
                myst=dict(html_meta=dict(description=fm['description'])))
    return dict(nb, cells=[*cells, mk_cell(more, 'markdown')], metadata=meta)

def contents(sidebar):
    "The sidebar of `_quarto.yml` for Sphinx"
    def docs(o): return [nbpath2html(p).with_suffix('').as_posix() for p in o['contents'] if p!='index.ipynb']
    def tree(o): return '\n'.join(['```{toctree}', ':hidden:', f":caption: {o['section']}", *docs(o), '```'])
    return '\n'.join(tree(o) for o in sidebar if docs(o))

def write_pages(proc, to, site):
    "All processed pages in `proc` for Sphinx, into `to`, and the files that they show"
    for p in proc.rglob('*.*'):
        name,text = p.relative_to(proc),None
        if p.suffix=='.ipynb':
            name = nbpath2html(name).with_suffix('.ipynb')
            page = name.with_suffix('').as_posix()
            more = contents(site['sidebar']['contents']) if page=='index' else ''
            text = json.dumps(myst_nb(read_nb(p), page, more)).encode()
        elif p.suffix=='.md': text = as_myst(p.read_text(), name.stem).encode()
        elif p.suffix in ('.svg', '.png') and 'out' not in name.parts: text = p.read_bytes()
        if text:
            (to/name).parent.mkdir(parents=True, exist_ok=True)
            (to/name).write_bytes(text)

if __name__=='__main__':
    from nbdev.serve import proc_nbs
    from sphinx.cmd.build import main
    root = cfg.config_path
    proc,src = root/'_proc',root/'_preview/src'
    proc_nbs(n_workers=0, force=proc.exists() and proc.stat().st_mtime < Path(__file__).stat().st_mtime)
    rmtree(src, ignore_errors=True)
    write_pages(proc, src, yaml.safe_load((root/'_quarto.yml').read_text())['website'])
    rc = main(['-q', '-W', '--keep-going', '-c', str(root/'docs'), str(src), str(root/'_preview/html')])
    if not rc: print('open _preview/html/index.html')
    sys.stdout.flush()
    os._exit(rc)                     # each page had a shell, and each of them would collect garbage on leaving
