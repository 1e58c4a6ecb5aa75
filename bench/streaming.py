"""Memory and speed of a stream that counts as 10 GB: one shard, linked a thousand times

`python bench/streaming.py [MINUTES]` writes results/streaming.json: what was read, held (RssAnon) and tokenised, until the
stream has ended once or the minutes are over: for batches that are ready to train on, and (a fifth of the time) for reading alone.
"""
import json, os, sys, tempfile, time
from datetime import date
from functools import partial
from pathlib import Path

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

def measure(kind, stream, tok, minutes, every=4e6):
    "Rows of (megabytes, tokens, seconds, CPU seconds, MB held), about one every 4 MB, over one round"
    rows,start,cpu,n_tokens,n_chars,due = [],time.perf_counter(),time.process_time(),0,0,0
    dl = StreamDL(StreamRows(stream, partial(clm_pieces, tok=tok, seq_len=256), 256), tok=tok, bs=64, device='cpu')
    def steps():
        if kind=='read':
            for at,records,_ in stream.blocks(): yield sum(len(r['text']) for r in records), 0, at['round']
        else:
            for inputs,y in dl:
                at = dl.dataset.position(dl.dataset.row)['block']
                yield len(y)*chars_per_token, int(inputs['n_tokens']), at['round']
    chars_per_token = sum(len(r['text']) for r in stream.sample)/sum(len(e['input_ids'])-1 for e in clm_pieces(stream.sample, tok, 10**6))
    for chars,tokens,round in steps():
        if round: break
        n_chars,n_tokens = n_chars+chars,n_tokens+tokens
        if n_chars<due: continue
        due,seconds = due+every,time.perf_counter()-start
        rows.append(dict(kind=kind, mb=n_chars/1e6, tokens=n_tokens, seconds=seconds, cpu=time.process_time()-cpu, held_mb=held_memory()/1e6))
        if seconds>60*minutes: break
    return rows

def main(minutes=10.):
    with tempfile.TemporaryDirectory() as tmp:
        folder = shards(Path(tmp))
        total = sum(p.stat().st_size for p in folder.iterdir())/1e6
        stream = TextStream(folder, seed=0)
        tok,rows = train_tokenizer((r['text'] for r in stream.sample), 4096),[]
        for kind,part in (('batches', 1), ('read', .2)): rows += measure(kind, stream, tok, part*minutes)
    out = Path(__file__).parent/'results'/'streaming.json'
    out.write_text(json.dumps(dict(date=str(date.today()), cores=os.cpu_count(), total_mb=total, rows=rows), indent=1))
    for kind in ('batches', 'read'): print(kind, [r for r in rows if r['kind']==kind][-1])

if __name__=='__main__': main(*map(float, sys.argv[1:]))
