"""lmft trains language models and shows how it is done: pretraining, fine-tuning, adapters, instructions, evaluation, and learning from
preferences. Every step is a notebook that you can read as a lesson, run as an experiment, and import as a library. It is for people
who want a result from their own model and file in three lines, and for people who want to know what those lines do. Trainers such as
TRL have more methods and run on large clusters, but their code is not made to be read; courses explain, but you cannot import them.
Here both are the same code, it runs on a laptop with two cores and no GPU, and the numbers on a page were measured by that page.

Modules:

- `lmft.all`: One name for the whole library, loaded when it is used
- `lmft.check.doctor`: Twenty-three faults that train without an error, found before the first step, each with its own check
- `lmft.check.estimate`: Parameters, peak memory and time of a run before it starts, from a dry run without numbers that counts all three at once
- `lmft.cli`: `lmft pretrain`, `finetune`, `sft`, `chat`, …: the commands, thin entry points to the library
- `lmft.commands`: All commands of `lmft` as typed functions, for the shell and for Python
- `lmft.core`: Sizes, seeds, devices, precision, errors that name the line, writes that cannot be half done, and the ledger of claims
- `lmft.data.annotations`: Labels, tagged words, answers in a context, and tasks with references as records
- `lmft.data.certificate`: Check each answer of a conversation: does training see the tokens that generation will see?
- `lmft.data.chat`: Which tokens of a conversation are in the loss: those that the model has to generate
- `lmft.data.cleaning`: Quality filters, test records found in the text, exact and near-duplicates, and weights for a mixture; each measured on planted faults
- `lmft.data.conversations`: Read messages, ShareGPT, pairs, transcripts and rankings as records with lmft's names
- `lmft.data.examples`: From records to token ids, and which of them are in the loss
- `lmft.data.fields`: One field of one record: there, of the right kind, and named when it is not
- `lmft.data.files`: Which files a path stands for, which of them are for training, and a hash of what they hold
- `lmft.data.jsons`: Lines, arrays and nested files of JSON as entries, in a stream that holds one value at a time
- `lmft.data.lines`: Plain text, sentences with one word per line, and tunes: streams of lines that are never held whole in memory
- `lmft.data.loaders`: From records to what a model sees: tokens, which of them are in the loss, and batches with little padding
- `lmft.data.messages`: One message in any public format: OpenAI, 🤗, ShareGPT
- `lmft.data.ondisk`: Records and tokens in memory-mapped files that a killed run can resume
- `lmft.data.records`: Any data as plain dicts: one call for every file, folder and format; every bad record is named
- `lmft.data.shapes`: Which shape an entry of a file has, by the names of its fields, and the record that it becomes
- `lmft.data.splits`: Validation that can be believed: every class on both sides, no document on two
- `lmft.data.streaming`: Text as a stream: read, shuffled, tokenised and packed while a model trains, exactly resumable, never stored
- `lmft.data.tables`: CSV, Parquet and 🤗 datasets as rows; names of classes come along
- `lmft.data.templates`: Write messages as text with any chat template; find out which form it expects and where an answer ends
- `lmft.data.tokenizers`: A tokenizer of our own or of a checkpoint, its special tokens, and the bytes that each token stands for
- `lmft.data.words`: What a word is, in one place: letters with their marks, and characters one by one where a script has no spaces
- `lmft.evals.compare`: Is B better than A, or is it noise? The difference on the same records, its interval, and the smallest effect that would show
- `lmft.evals.evaluation`: Scores on tasks that a model was not trained on: leaving out single tasks compared with leaving out whole clusters
- `lmft.evals.folds`: A model for every cluster of tasks that is left out, and for every group of single tasks, each on equally much data
- `lmft.evals.harness`: A task as files that lm-evaluation-harness reads; its number for a model is that of `evaluate`
- `lmft.evals.knowledge`: For each fact: known before, learned, kept, forgotten or invented. For the facts of the tiny world, or for your own
- `lmft.evals.overlap`: Which tasks share sources, inputs or phrases: a matrix, the leaks between clusters, and a tree of similar tasks
- `lmft.evals.prompting`: Zero- and few-shot prompts, answers chosen by probability, and the effect of examples in a prompt
- `lmft.evals.tasks`: Super-NaturalInstructions files as records of tasks, split by hash, with fingerprints that recognise a record
- `lmft.generation`: Continue a text, answer a question, and compute how probable a given answer is
- `lmft.models.adapters`: Small parts that tune a frozen model: LoRA, prefixes, soft prompts, bottlenecks in sequence and in parallel
- `lmft.models.bottlenecks`: A kind of adapter that peft does not have: a narrow layer behind a module or beside it
- `lmft.models.gguf`: A model from a GGUF file, or from an installed Python package, as a folder that every command reads
- `lmft.models.hub`: A model, its tokenizer and a card that says what it is, uploaded to the 🤗 hub
- `lmft.models.loading`: Tiny configurations of real architectures, loading and saving, what other libraries must find in a folder
- `lmft.models.methods`: Which weights a method trains: all, the last blocks, the head, or an adapter
- `lmft.models.parts`: Blocks, attention, feed-forward, head, positions: what a 🤗 model is made of, found in one place
- `lmft.models.pooling`: One vector for a sequence: its first token, the mean of its tokens, or its last token
- `lmft.models.probe`: Attention, feed-forward, final norm, causality: found by running a small copy, each with a trial of its own
- `lmft.models.several`: The base below an adapter, several adapters on one model, and sums of them
- `lmft.models.wrapper`: A 🤗 model behind one call that takes a batch and returns predictions for just the tokens in the loss
- `lmft.options`: What commands share: options written once, and a check that they are what the signature says
- `lmft.progress`: How far long work is and how long it will take, in a terminal, in a notebook and in a log file
- `lmft.reports`: One self-contained page: what leaving out single tasks overstates, a chart for each cluster, what the tasks share, and which are alike
- `lmft.runs`: A run and its folder, from the first check to the model card
- `lmft.stages.advantages`: REINFORCE, RLOO, GRPO, Dr. GRPO and DAPO in a line each, and the estimators of the KL, beside the true gradient
- `lmft.stages.bases`: Measure what a model knows of the tiny world, and get the two base models from which the later lessons start
- `lmft.stages.builders`: From a file and a model to a learner in one call: `sft_learner` and eight more
- `lmft.stages.classification`: A class, several classes or a number for each text: labels, losses, scores and chance in one place
- `lmft.stages.defaults`: Every option of every stage, written once: builders and commands take their signatures from here
- `lmft.stages.detectors`: Measures of the answers of each round, and a warning when one of them leaves its limits
- `lmft.stages.diagnosis`: Faults of a training run, found before it starts: the doctor for files and folders
- `lmft.stages.extraction`: Labels on words and on spans: named entities, and answers that stand in a text or are written
- `lmft.stages.finetuning`: A class, several classes or a number for each text: which token is read, what the loss is, how it is read back
- `lmft.stages.guidelines`: Instructions for annotators, checked by code, and the majority of the annotators' answers
- `lmft.stages.instructions`: From a model that continues text to one that answers: chat templates, four ways to make a data set, and tuning on it
- `lmft.stages.interpretation`: The texts that it gets most wrong, which class it takes for which, and whether its probabilities can be believed
- `lmft.stages.kto`: Learning from single answers with a label, good or bad, without pairs
- `lmft.stages.making`: Records by hand, from templates, or from a language model, each with its origin, and a filter for near-duplicates
- `lmft.stages.pairs`: A chosen and a rejected answer as two sequences of one batch, with the log-probabilities of a reference
- `lmft.stages.people`: A person ranks answers one after the other; each ranking is on disk before the next question
- `lmft.stages.pictures`: Tokens coloured by their probability, attention with its mask, and the answers of several models in one place
- `lmft.stages.ppo`: Reinforcement learning in the one loop: a value head, rollouts that fill the loader, and a learner
- `lmft.stages.predicting`: Add classes, entities, answers or texts to every record of a file, and go on after an interruption
- `lmft.stages.prediction`: Predict with any tuned model: records come back with classes, numbers, entities, answers or completions
- `lmft.stages.preference_losses`: Losses on the log-probabilities of a better and a worse answer, each beside its equation and paper
- `lmft.stages.preferences`: Rankings with ties become pairs; the pairs train a reward model, or a policy that answers better
- `lmft.stages.pretraining`: From text alone: next words, masked words, next-sentence prediction, and the base models of all later lessons
- `lmft.stages.questions`: Answer questions from a context, as a span of it or in the model's own words, and score the answers as SQuAD does
- `lmft.stages.rankings`: Human preferences on answers: rankings with ties, collected, split without leaks, and turned into pairs
- `lmft.stages.raters`: Rankings of the same answers by several people: how far they agree, and one ranking made of all
- `lmft.stages.rewards`: A reward model, a function, a verifier, or several of them with weights: what reinforcement learning can be paid by
- `lmft.stages.rlhf`: Let a model answer, let a reward model score the answers, and make the better ones more probable
- `lmft.stages.table`: One table of all training stages: head, fields of a record, batches, loss, metrics and defaults
- `lmft.stages.tools`: Let a model call functions while it answers, and learn from the outcome: only its own tokens are in the loss
- `lmft.tour`: From random weights to a model that answers: sixteen stages in one call, and one page with all results
- `lmft.train.callbacks`: Precision, a log of every step, a run that others can follow, samples of text: many small callbacks
- `lmft.train.checkpoints`: An interrupted run continues exactly as if it had not been interrupted, to the same weights bit for bit
- `lmft.train.forecast`: Minutes to go for the whole run, all epochs and validations, seconds after it has begun
- `lmft.train.guards`: A loss that is not finite, a full memory, a full disk, a signal to stop: one clear line, and no checkpoint is lost
- `lmft.train.learner`: One loop for every stage: fastai's, made exact for tokens
- `lmft.train.optim`: AdamW that decays matrices alone, Muon for the matrices of the blocks, groups of parameters by depth, and learning-rate schedules
- `lmft.train.processes`: The same cell and the same command on several processes, with the same weights as on one
- `lmft.train.sharding`: Each process holds a part of every weight (FSDP2), so a model may be larger than one device
- `lmft.train.speed`: Less memory or less time per step, with the same final weights
- `lmft.train.validation`: Validate every so many steps, and stop when it no longer gets better
- `lmft.train.zloss`: A small term that holds the logits near probabilities, so that long trainings stay stable
- `lmft.training`: `lmft pretrain`, `finetune`, `sft`, `reward`, `dpo`, `ppo`: a builder and a run, each as one typed function
- `lmft.world.documents`: Texts about the world in nine kinds, in a configurable mixture, by year and by domain
- `lmft.world.facts`: A small world in which every fact is known
- `lmft.world.judge`: A labeller who knows the facts, and annotators
- `lmft.world.tasks`: Forty-two supervised tasks in one table: clusters, templates, scorers, none solved by a bag of words"""

from importlib.metadata import version
__version__ = version("lmft")
