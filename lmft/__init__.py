"""lmft turns a text file into a language model that continues it, instructions into a model that answers them, and preferences into one whose answers people would rather have, from Python or from the command line. It is written as notebooks: each lesson teaches one step of that way, measures what it says, and is itself the module that you import.

Modules:

- `lmft.check.doctor`: Twenty faults that train without an error and come out wrong, found before the first step
- `lmft.check.estimate`: Parameters, peak memory and time of a run before it starts, from a rehearsal without a single number
- `lmft.cli`: `lmft pretrain`, `finetune`, `sft`, `chat`, …: thin doors to the library
- `lmft.commands`: Pretraining, tuning and all that follows, each as one function that a shell can call
- `lmft.core`: Sizes, seeds, devices, precision, errors that name the line, writes that cannot be half done, and the ledger of claims
- `lmft.data.annotations`: Labels, tagged words, answers in a context, and tasks with references as records
- `lmft.data.batches`: From records to what a model sees: tokens, which of them are trained, and rows without waste
- `lmft.data.conversations`: Messages, ShareGPT, pairs, transcripts and rankings as records
- `lmft.data.fields`: One field of one record: there, of the right kind, and named when it is not
- `lmft.data.files`: Which files a path stands for, which of them are for training, and a hash of what they hold
- `lmft.data.jsons`: Lines, arrays and nested files of JSON as rows, in a stream that holds one value at a time
- `lmft.data.lines`: Plain text, sentences a word a line, and tunes: streams of lines that are never held whole
- `lmft.data.ondisk`: Records and tokens in files that are mapped, not loaded: memory stays flat, and a killed run goes on
- `lmft.data.records`: Any data as plain dicts: one call for every file, folder and shape, every bad record named
- `lmft.data.shapes`: What people call things: which shape a row has, and the record that it becomes
- `lmft.data.splits`: Validation that can be believed: every class on both sides, no document on two
- `lmft.data.tables`: CSV, Parquet and 🤗 datasets as rows; names of classes come along
- `lmft.evals.evaluation`: What a model does with tasks it was not trained on, and how far a left-out task is from a left-out kind of task
- `lmft.evals.prompting`: Zero- and few-shot prompts, answers chosen by probability, and what examples in a prompt do
- `lmft.generation`: Continue a text, answer a question, and say how probable a given answer is
- `lmft.models.adapters`: Small parts that tune a frozen model: LoRA, prefixes, soft prompts, bottlenecks in sequence and in parallel
- `lmft.models.loading`: Tiny configurations of real architectures, safe loading and saving, and which part of a model a method trains
- `lmft.models.methods`: Which weights a method trains: all, the last blocks, the head, or an adapter
- `lmft.models.parts`: Blocks, head, new modules: what a 🤗 model is made of, found in one place
- `lmft.models.wrapper`: A 🤗 model behind one call that takes a batch and returns predictions for just the tokens in the loss
- `lmft.runs`: What every command does around its own work: options are checked, a folder is claimed, figures are left in it
- `lmft.stages.extraction`: Labels on words and on spans: named entities, and answers that stand in a text or are written
- `lmft.stages.finetuning`: Classes for texts, a style for a model: what a head, a few blocks or all weights learn, and what they forget
- `lmft.stages.instructions`: From a model that goes on to one that answers: chat templates, four ways to make a set, and tuning on it
- `lmft.stages.preferences`: Rankings with ties become pairs; pairs teach a reward model to judge, or a policy to answer better
- `lmft.stages.pretraining`: From text alone: next words, masked words, neighbouring sentences, and the base models of all later lessons
- `lmft.stages.rlhf`: Let a model answer, let a reward model judge the answers, and make the better ones more probable
- `lmft.tour`: From random weights to a model that answers: the whole way in one call, and one page that shows it
- `lmft.train.callbacks`: Precision that is what it says, a log of every step, a run that others can follow, samples of what the model writes
- `lmft.train.checkpoints`: A run that is cut off goes on as if nothing had happened, to the same weights bit for bit
- `lmft.train.guards`: A loss that is not finite, a full memory, a full disk, a signal to stop: one clear line, and no checkpoint is lost
- `lmft.train.learner`: One loop for everything: fastai's, made exact for tokens
- `lmft.train.processes`: The same cell and the same command on several processes, to the same weights
- `lmft.train.speed`: Less memory or less time for a step, and the same weights in the end
- `lmft.world.documents`: The world told in nine kinds of text, in a mixture that can be set, by year and by field of work
- `lmft.world.facts`: A small world whose every truth is known: people, places and things, what holds of them, and since when
- `lmft.world.judge`: A labeller who knows the truth: scores any answer, ranks several, and can be made careless, biased, or many
- `lmft.world.tasks`: Supervised tasks in clusters, with templates and scorers, and no test that can be passed by counting words"""

from importlib.metadata import version
__version__ = version("lmft")
