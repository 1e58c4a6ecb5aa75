"""Memory and speed of a stream that counts as 10 GB: one shard, linked a thousand times

`python bench/streaming.py [MINUTES [KINDS]]` writes results/streaming.json: what was read, held (RssAnon) and tokenised until
the stream has ended once or the minutes are over. `batches` are ready to train on; `no tokenizer` has stand-ins for tokens and
blocks of 2 MB, so that more of the stream and more blocks are read in the time.
"""
import json, os, sys, tempfile, time
from datetime import date
from functools import partial
from pathlib import Path

import torch
from lmft.data.ondisk import clm_pieces, held_memory
from lmft.data.streaming import StreamDL, StreamRows, TextStream
from lmft.data.tokenizers import train_tokenizer
from lmft.world.documents import corpus
from lmft.world.facts import World

def shards(folder, n=1000, size=10_000_000):
    "A shard of `size` bytes, linked `n` times"
    texts,done,i = [d['text'] for d in corpus(World(0), 100_000)],0,0
    with open(folder/'shard.jsonl', 'w') as f:
        while done<size:
            done += f.write(json.dumps(dict(text=f'{i}. {texts[i%len(texts)]}'))+'\n')
            i += 1
    (folder/'links').mkdir()
    for k in range(n): (folder/'links'/f'{k:04d}.jsonl').symlink_to(folder/'shard.jsonl')
    return folder/'links'

def stand_in(records):
    "Examples that no tokenizer made, so that more of the stream can be read in the time"
    return [dict(input_ids=i, labels=i) for r in records for i in [torch.arange(2+len(r['text'])//4)[:256]]]

def measure(make, stream, tok, minutes, every=4e6):
    "Rows of (megabytes, tokens, seconds, CPU seconds, MB held), about one every 4 MB, over one round"
    rows,start,cpu,n_tokens,due = [],time.perf_counter(),time.process_time(),0,0
    dl = StreamDL(StreamRows(stream, make, 256), tok=tok, bs=64, device='cpu')
    n_chars,each = 0,sum(len(r['text']) for r in stream.sample)/sum(len(e['input_ids']) for e in make(stream.sample))
    for inputs,_ in dl:
        n_tokens += int(inputs['n_tokens'])
        n_chars = n_tokens*each
        if n_chars<due: continue
        due,seconds,at = due+every,time.perf_counter()-start,dl.dataset.position(dl.dataset.row)
        rows.append(dict(mb=n_chars/1e6, tokens=n_tokens, seconds=seconds, cpu=time.process_time()-cpu, held_mb=held_memory()/1e6))
        if seconds>60*minutes or at['block']['round']: break
    return rows

def main(minutes=10., kinds='batches,no tokenizer'):
    out = Path(__file__).parent/'results'/'streaming.json'
    kept = [r for r in json.loads(out.read_text())['rows'] if r['kind'] not in kinds.split(',')] if out.exists() else []
    with tempfile.TemporaryDirectory() as tmp:
        folder = shards(Path(tmp))
        total,stream = sum(p.stat().st_size for p in folder.iterdir())/1e6,TextStream(folder)
        tok = train_tokenizer((r['text'] for r in stream.sample), 4096)
        makes = {'batches': partial(clm_pieces, tok=tok, seq_len=256), 'no tokenizer': stand_in}
        for kind in kinds.split(','):
            stream.n_chars = 16_000_000 if kind=='batches' else 2_000_000
            kept += [dict(kind=kind, **r) for r in measure(makes[kind], stream, tok, minutes)]
    out.write_text(json.dumps(dict(date=str(date.today()), cores=os.cpu_count(), total_mb=total, rows=kept), indent=1))
    for kind in kinds.split(','): print(kind, [r for r in kept if r['kind']==kind][-1])

if __name__=='__main__': main(*map(float, sys.argv[1:2]), *sys.argv[2:])
