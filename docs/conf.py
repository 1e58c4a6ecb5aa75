"`make preview`: the pages that nbdev has processed, by Sphinx; nothing is run, nothing comes from the web"
from pathlib import Path
import yaml
from docutils.nodes import SkipNode
from latex2mathml.converter import convert

root = Path(__file__).resolve().parent.parent
site = yaml.safe_load((root/'_quarto.yml').read_text())['website']        # title, sections and order stand there alone
project = html_title = site['title']
html_baseurl = site['site-url']
extensions = ['myst_nb']
nb_execution_mode = 'off'
nb_merge_streams = True
myst_enable_extensions = ['dollarmath', 'amsmath']
myst_heading_anchors = 6
myst_heading_slug_func = 'pages.slug'
suppress_warnings = ['myst.header']       # a page of a module goes from its title to its functions
html_math_renderer = 'mathml'
html_theme = 'sphinx_book_theme'
html_theme_options = dict(repository_url=site['repo-url'], use_repository_button=True, use_download_button=False,
                          home_page_in_toc=True, show_toc_level=3, navbar_persistent=[])
html_context = dict(default_mode='auto')
html_static_path = [str(root/'nbs/site')]
html_css_files = ['style.css']
html_logo = html_favicon = str(root/'nbs/site/icon.svg')
html_extra_path = [str(root/'nbs/llms.txt')]
html_copy_source = html_show_sphinx = html_show_copyright = False

def mathml(display):
    "LaTeX as MathML, which browsers show by themselves"
    def visit(self, node):
        self.body.append(convert(node.astext(), display=display))
        raise SkipNode
    return visit, None

def setup(app):
    app.add_html_math_renderer('mathml', mathml('inline'), mathml('block'))
