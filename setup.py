"Package metadata lives in settings.ini; edit there, not here."
from configparser import ConfigParser
from pathlib import Path
from setuptools import setup, find_packages

here, ini = Path(__file__).parent, ConfigParser(delimiters=['='])
ini.read(here/'settings.ini', encoding='utf-8')
cfg = ini['DEFAULT']
lib = cfg['lib_name']

setup(
    name=lib, version=cfg['version'], description=cfg['description'], keywords=cfg['keywords'].split(),
    author=cfg['author'], author_email=cfg['author_email'], license_expression=cfg['license'],
    python_requires=f">={cfg['min_python']}", classifiers=['Programming Language :: Python :: 3'],
    long_description=(here/'README.md').read_text(encoding='utf-8'), long_description_content_type='text/markdown',
    packages=find_packages(include=[f'{lib}*']),
    install_requires=cfg['requirements'].split(), extras_require={'dev': cfg['dev_requirements'].split()},
    entry_points={'console_scripts': cfg['console_scripts'].split(), 'nbdev': [f'{lib}={lib}._modidx:d']})
