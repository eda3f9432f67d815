"""Every error of the language by its id: what `specc explain ID` and the reference say of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Final

from specc.core.errors import SpeccError
from specc.core.shipped import shipped


@dataclass(frozen=True, slots=True)
class Explanation:
    """What must hold, what goes wrong where it does not, what to write, and the name of a spec that has the mistake."""

    sentence: str
    why: str
    instead: str
    example: str


@dataclass(frozen=True, slots=True)
class Page:
    """The page of one error: its explanation, the whole text of a bad spec, and what specc says of that, word for word.

    `message` names the spec as `file` does.
    """

    id: str
    sentence: str
    why: str
    instead: str
    file: str
    example: str
    message: str


ALL: Final[Mapping[str, Explanation]] = {
    # E00: the text
    "E0001": Explanation(
        "A spec is a readable file in UTF-8.",
        "In another encoding a name or a system prompt would be other letters on another machine.",
        "Save the file as UTF-8.",
        "yaml-latin-1",
    ),
    "E0002": Explanation(
        "A spec is YAML; the parser stopped here.",
        "What comes after the place is not read, so the cause may also stand a line above.",
        "Close quotes and brackets, indent with spaces, and put a space after each `:`.",
        "yaml-unclosed-quote",
    ),
    "E0003": Explanation(
        "A key stands once in a mapping.",
        "Of two, a reader sees one and the parser takes the other.",
        "Remove one of them.",
        "yaml-duplicate-key",
    ),
    "E0004": Explanation(
        "A spec is small: 1 MiB, 100 levels, 20000 values with aliases expanded.",
        "A few lines of aliases can stand for billions of values; with a bound, checking a stranger's spec is safe.",
        "Put data into files that the spec names.",
        "yaml-laughs",
    ),
    "E0005": Explanation(
        "A spec is one YAML 1.2 document, and that a mapping of sections.",
        "A build is made from one description; a second document would be ignored by most readers.",
        "Give each spec a file of its own that begins with `version: 1`.",
        "yaml-two-documents",
    ),
    "E0006": Explanation(
        "YAML tags are not part of the language: a value is what it looks like, or a string in quotes.",
        "Tags make parsers build objects, and some of them run code.",
        "Remove the tag.",
        "yaml-tag",
    ),
    "E0007": Explanation(
        "Numbers are finite and fit into 64 bits.",
        "Keys are hashes of canonical JSON, which has neither infinity nor NaN.",
        "Write a number, or leave the field out.",
        "yaml-infinity",
    ),
    "E0008": Explanation(
        "Keys are words; anchors stand before their aliases and do not contain themselves; `<<` takes mappings.",
        "Whatever else a parser made of it, two of them would make two things.",
        "Define the anchor above, and write values themselves: specs are not templates.",
        "yaml-unknown-anchor",
    ),
    "E0009": Explanation(
        "`extends` names another spec, and a chain of them has an end.",
        "Values come from the whole chain, so each spec of it must be there.",
        "Name a spec relative to the file that the line stands in.",
        "extends-nothing",
    ),
    # E01: the schema
    "E0101": Explanation(
        "Unknown fields are errors.",
        "A misspelt field would leave a default in force without a word, as DeepSpeed's unknown keys do.",
        "Use the name that is suggested; `specc schema --field SECTION` lists the fields of a section.",
        "unknown-field",
    ),
    "E0102": Explanation(
        "A value is of the field's type and within its bounds.",
        "Engines that convert such values silently train something else, or stop hours later.",
        "Write what is expected; `specc schema --field FIELD` shows a field's page.",
        "unknown-choice",
    ),
    "E0103": Explanation(
        "Fields without a default are required.",
        "Nobody but you can know them.",
        "Add the field.",
        "missing-model",
    ),
    "E0104": Explanation(
        "Some names are reserved for a later release of specc.",
        "They have a meaning already, and this release cannot honour it.",
        "Do what the hint says in place of it.",
        "reserved-names",
    ),
    "E0105": Explanation(
        "A spec is of a version of the language that the release reads.",
        "Another version may mean other things by the same words.",
        "Write `version: 1`, or install the release that the spec was written for.",
        "newer-version",
    ),
    "E0106": Explanation(
        "A field belongs to one algorithm or optimizer, and is used with that one.",
        "With another one it would have no effect.",
        "Remove it, or choose what it belongs to.",
        "momentum-of-muon",
    ),
    "E0107": Explanation(
        "A DeepSpeed value that another field of the spec decides is not written under `train.deepspeed`.",
        "Two places for one fact can disagree: batch sizes of the one and of the other, clipping, precision.",
        "Use the field that the hint names.",
        "deepspeed-batch-size",
    ),
    # E02: rules between fields
    "E0201": Explanation(
        "`train.epochs` and `train.steps` exclude each other.",
        "Both say how long to train.",
        "Remove one of them.",
        "epochs-and-steps",
    ),
    "E0202": Explanation(
        "`train.epochs` or `train.steps` says how long to train.",
        "Without either there is nothing to train.",
        "Write `epochs: 3`, or remove the line that turns it off.",
        "no-length",
    ),
    "E0203": Explanation(
        "A conversation of `data.sequence_length` tokens fits into one step of `train.batch_tokens`.",
        "A step is packed with whole conversations, so a longer one has no step to be in.",
        "Raise `train.batch_tokens`, or cut conversations earlier with `data.sequence_length`.",
        "batch-below-sequence",
    ),
    "E0204": Explanation(
        "One kind of norm stands before the fusion of the hidden states.",
        "They do the same in two ways: `norm_before_fc` is one over all of them together, `fc_norm` one over each.",
        "Write `norm_before_fc: false` where `fc_norm` is meant.",
        "two-norms",
    ),
    "E0205": Explanation(
        "A draft is asked for no more tokens than its algorithm can draft.",
        "Beyond it nearly every token is rejected, and each still costs a pass of the draft.",
        "Ask for fewer, or unroll more steps in training.",
        "too-many-tokens",
    ),
    "E0206": Explanation(
        "DeepSpeed keeps fp32 master weights beside bf16 only from ZeRO stage 1.",
        "At stage 0 it refuses bf16 with fp32 gradients, after the data was made.",
        "Write `zero: {stage: 1}`, which costs nothing on one rank, or `precision: fp32`.",
        "zero-stage-and-bf16",
    ),
    "E0207": Explanation(
        "An answer is shorter than the whole sequence.",
        "With `data.responses.max_tokens` as long as `data.sequence_length` there is no room for a question.",
        "Give answers half of the sequence, say.",
        "answers-too-long",
    ),
    "E0208": Explanation(
        "With `from: data` nothing is generated, so values of sampling have no effect.",
        "Who writes a temperature expects answers of the verifier, and would train on other ones.",
        "Remove the value, or write `from: verifier`.",
        "sampling-without-responses",
    ),
    "E0209": Explanation(
        "At temperature 0 the most probable token is taken, so `top_p` has no effect.",
        "Who writes it expects sampled answers.",
        "Remove it, or give a `temperature` above 0.",
        "top-p-when-greedy",
    ),
    "E0210": Explanation(
        "The evaluation's prompts are not training data.",
        "Prompts that were trained on say nothing about acceptance elsewhere.",
        "Evaluate on prompts of a file of their own.",
        "trained-on-the-test",
    ),
    "E0211": Explanation(
        "Validation rows are not training rows.",
        "The best epoch is chosen by them, and would be the one that learned them by heart.",
        "Write `validation: 0.05` to hold out a share of the sources.",
        "trained-on-the-validation",
    ),
    "E0212": Explanation(
        "A file is listed once in `data.sources`.",
        "Equal conversations are kept once, so the second one adds nothing; another file was meant most likely.",
        "Remove one of the two.",
        "source-twice",
    ),
    "E0213": Explanation(
        "`checks` come with an `evaluate`.",
        "They are judged by the evaluation, and without one could not be met.",
        "Add `evaluate` with a file of prompts.",
        "checks-without-evaluation",
    ),
    "E0214": Explanation(
        "A file or folder that the spec names is there.",
        "A path is relative to the file that it stands in, not to where `specc` is started.",
        "Correct the path.",
        "missing-init",
    ),
    "E0215": Explanation(
        "Paths are relative.",
        "An absolute path holds on one machine only, and the lock would carry it to others.",
        "Name the file relative to the spec.",
        "absolute-paths",
    ),
    "E0216": Explanation(
        "The warm-up ends before the training does.",
        "Else the learning rate never reaches its peak.",
        "Shorten it: below 1 a warm-up is a share of all steps.",
        "warmup-longer-than-training",
    ),
    "E0217": Explanation(
        "`checks.lossless` has prompts to compare.",
        "Losslessness is judged by comparing the output for `evaluate.lossless_prompts` prompts.",
        "Write `lossless_prompts: 4`.",
        "lossless-without-prompts",
    ),
    "E0218": Explanation(
        "A loss has at least one weight.",
        "Without one there is no gradient.",
        "Write `loss: kl`.",
        "loss-without-weights",
    ),
    "E0219": Explanation(
        "The ids in `draft.hidden_state_layers` rise.",
        "vLLM captures hidden states in ascending order, each once: the draft would read others in service.",
        "Sort them, and name each layer once.",
        "layers-not-rising",
    ),
    "E0220": Explanation(
        "An optimizer is offloaded from ZeRO stage 1 on.",
        "At stage 0 every rank keeps the whole optimizer beside its parameters: DeepSpeed offloads nothing.",
        "Write `zero: {stage: 1, offload: optimizer}`.",
        "offload-at-stage-0",
    ),
    "E0221": Explanation(
        "Parameters are offloaded at ZeRO stage 3.",
        "Below it every rank needs the whole parameters on its device.",
        "Write `stage: 3`, or `offload: optimizer`.",
        "offload-of-parameters",
    ),
    "E0222": Explanation(
        "Every phase of `runtime.train.ranks` but the last ends after a given step, each later than the one before.",
        "A number of ranks is part of what decides the weights, so when it changes is, too.",
        "Give `until` to all phases but the last.",
        "phase-without-an-end",
    ),
    "E0223": Explanation(
        "A phase ends before the training does.",
        "The one after it would have nothing to do.",
        "Give it an earlier end, or remove the ones after it.",
        "phase-beyond-the-end",
    ),
    "E0224": Explanation(
        "Paths stay inside the project: the nearest folder above the spec that has `.git` or `pyproject.toml`.",
        "What is outside is in nobody else's checkout, so the lock would hold on one machine only.",
        "Move the file into the project, link to it from there, or name a hub id or a package.",
        "outside-the-project",
    ),
    "E0225": Explanation(
        "A `revision` goes with a hub id.",
        "Folders, files and packages have no revisions; what they hold is pinned by the lock.",
        "Remove it, or name the hub id in `verifier.model`.",
        "revision-of-a-folder",
    ),
    "E0226": Explanation(
        "`trust_remote_code` is for repositories that carry code.",
        "A GGUF file carries none, so the permission would only be waiting for another model.",
        "Remove it.",
        "code-of-a-gguf-file",
    ),
    "E0227": Explanation(
        "A sequence is longer than the draft steps that training unrolls.",
        "Each step predicts a token further ahead: in a shorter sequence the last ones have nothing to predict.",
        "Lower `draft.ttt.steps`, or raise `data.sequence_length`.",
        "more-steps-than-tokens",
    ),
    "E0228": Explanation(
        "`evaluate.lossless_prompts` are among the evaluation's prompts.",
        "Fewer would be compared than was asked for, without a word.",
        "Lower it, or take more rows in `evaluate.prompts`.",
        "lossless-beyond-the-prompts",
    ),
    "E0229": Explanation(
        "`checks.mean_acceptance_length` asks for a number that can be reached.",
        "It counts a draft's accepted tokens and the verifier's own one, so it lies between 1 and 1 more than the"
        " speculative tokens: the check would fail after every build.",
        "Compare with a number in between, or raise `export.speculative_tokens`.",
        "unreachable-acceptance",
    ),
    "E0230": Explanation(
        "The evaluation generates enough tokens for a whole draft.",
        "With no more tokens than a draft has, none can be accepted whole, and the mean acceptance says nothing.",
        "Raise `evaluate.max_tokens`; 128 is the default.",
        "evaluation-shorter-than-a-draft",
    ),
    "E0231": Explanation(
        "A DeepSpeed value is one of the ZeRO stage that is used.",
        "DeepSpeed takes a value of another stage in silence, and it has no effect.",
        "Remove it, or change `train.zero.stage`.",
        "deepspeed-of-stage-3",
    ),
    "E0232": Explanation(
        "NVMe offload has an `nvme_path` inside the stage's work folder.",
        "DeepSpeed takes a configuration without one, and fails when it makes the optimizer. A path outside would hold"
        " on one machine only, and stand in the lock.",
        "Write `nvme_path: swap`; `runtime.store` decides on which disk that is.",
        "nvme-without-a-path",
    ),
    "E0233": Explanation(
        "Values of NVMe come with `device: nvme`.",
        "Memory has no buffers and no queues, so they would have no effect.",
        "Remove them, or write `device: nvme`.",
        "nvme-values-in-memory",
    ),
    "E0234": Explanation(
        "What is offloaded is said by `train.zero.offload`; values of the offload come with it.",
        "DeepSpeed would offload, or not, by the mere presence of the mapping.",
        "Write `offload: optimizer` or `offload: parameters` in `train.zero`, or remove the values.",
        "offload-values-without-offload",
    ),
    "E0235": Explanation(
        "`draft.init` has one of `from` and `convert`.",
        "A draft starts from one set of weights.",
        "Write `from` for a speculator in the speculators format, `convert` for a draft in another layout.",
        "init-of-two-drafts",
    ),
    "E0236": Explanation(
        "`layout` and `revision` of `draft.init` come with `convert`, and `revision` with a hub id.",
        "They would have no effect otherwise.",
        "Remove them.",
        "init-with-a-layout",
    ),
    "E0237": Explanation(
        "A source of prompts is a `file`, or a file of a data set: `dataset` with `path`.",
        "The lock pins one file by its sha256, and a data set has many.",
        "Write `file: prompts/held-out.jsonl`, or `dataset: org/name` with `path: question.jsonl`.",
        "prompts-from-nowhere",
    ),
    "E0238": Explanation(
        "A list of `evaluate.grid` has each value once.",
        "A cell that is listed twice would be measured twice, and have two speeds.",
        "Remove one of the two.",
        "grid-twice",
    ),
    "E0239": Explanation(
        "`evaluate.grid.speculative_tokens` are numbers that the draft can be asked for.",
        "A draft proposes as many tokens as it was trained for; vLLM refuses more, or they are hardly ever accepted.",
        "Lower the number, or train for more steps.",
        "grid-beyond-the-draft",
    ),
    "E0240": Explanation(
        "A source names its rows in one way: `file`, `dataset`, `url` or `preset`.",
        "With two of them nobody can say which is meant; with none there is nothing to read.",
        "Write an item of the list for each.",
        "sources-of-two-kinds",
    ),
    "E0241": Explanation(
        "`config`, `split`, `path` and `revision` are of a data set; what a preset stands for is fixed.",
        "On another source they would have no effect, and other rows would be read than was meant.",
        "Remove the key, or name the data set.",
        "split-of-a-file",
    ),
    "E0242": Explanation(
        "Either `path` names files of a data set, or `split` and `config` do.",
        "The files of a split are those that the data set's card lists; `path` goes past it.",
        "Remove the one that is not meant.",
        "path-and-split",
    ),
    "E0243": Explanation(
        "A file's suffix says how it is read.",
        "Guessing from its bytes would read some other rows than were meant, and not say so.",
        "Convert it, or name another file.",
        "unknown-format",
    ),
    "E0244": Explanation(
        "All sources of the training data have a `weight`, or none has.",
        "A weight is a part of the mix, and of a source without one nobody knows the part.",
        "Give all of them one, or read all of them whole.",
        "weights-of-some",
    ),
    "E0245": Explanation(
        "A filter's lower bound is not above its upper one.",
        "No conversation would be kept.",
        "Swap the two.",
        "filters-that-keep-nothing",
    ),
    "E0246": Explanation(
        "`keep` and `ahead` stand beside `from: stream` in `data.hidden_states`.",
        "From disk all hidden states are there before training begins, and are kept as an artifact.",
        "Write `from: stream`, or remove them.",
        "kept-on-disk",
    ),
    "E0247": Explanation(
        "`runtime.train.devices` has one for each rank, and `runtime.datagen.devices` as many for each worker.",
        "Two processes on one GPU fight for its memory, and one without a GPU does not start.",
        "Name more or fewer, or leave them out: then the build's own devices are shared out.",
        "devices-that-do-not-go-round",
    ),
    "E0250": Explanation(
        "Several samples of an answer need a temperature above 0.",
        "At temperature 0 the most probable token is taken, and all samples would be the same conversation.",
        "Give a `temperature`, or remove `samples`.",
        "samples-when-greedy",
    ),
    "E0251": Explanation(
        "`data.responses.template` has no arguments that specc itself gives the chat template.",
        "Messages and tools are each row's own, and a date is a value of the lock.",
        "Remove them.",
        "template-that-takes-messages",
    ),
    # E03: rules that need facts about the verifier
    "E0301": Explanation(
        "A layer id is at most the verifier's number of layers, which stands for the last layer's output.",
        "Behind the last layer there is nothing to read.",
        "Use ids from 0 to the number of layers, or leave the field out.",
        "facts/layer-beyond-the-last",
    ),
    "E0302": Explanation(
        "The draft's vocabulary is part of the verifier's.",
        "A token that the verifier does not have can never be accepted.",
        "Write `vocabulary: full` to keep them all.",
        "facts/vocabulary-too-large",
    ),
    "E0303": Explanation(
        "A sequence fits into the verifier's context.",
        "Beyond it the verifier's hidden states are not what it was trained to make.",
        "Lower `data.sequence_length`, or leave it out.",
        "facts/sequence-beyond-the-context",
    ),
    "E0304": Explanation(
        "The derived sequence length fits into one step of `train.batch_tokens`.",
        "A step is packed with whole conversations, so a longer one has no step to be in.",
        "Give `data.sequence_length`, or raise `train.batch_tokens`.",
        "facts/batch-below-derived-sequence",
    ),
    "E0305": Explanation(
        "An answer is shorter than the derived sequence.",
        "There would be no room for a question.",
        "Give answers half of the sequence, say.",
        "facts/answers-beyond-derived-sequence",
    ),
    "E0306": Explanation(
        "Prompt and output of the evaluation fit into the verifier's context.",
        "A request that does not is refused, after everything was built.",
        "Lower `evaluate.max_tokens`.",
        "facts/evaluation-beyond-the-context",
    ),
    "E0307": Explanation(
        "The verifier has enough layers for the default hidden-state layers to differ.",
        "They are the third, the middle one and the third from the end.",
        "Name different layers in `draft.hidden_state_layers`.",
        "facts/too-few-layers",
    ),
    "E0308": Explanation(
        "A sliding window is shorter than the verifier's context.",
        "No position is ever outside a longer one, so it has no effect.",
        "Lower `draft.sliding_window`, or remove it.",
        "facts/window-beyond-the-context",
    ),
    "E0309": Explanation(
        "The verifier's chat template tells who speaks.",
        "A draft is trained on what the assistant wrote; in a template that shows neither `assistant` nor a message's"
        " `role` its turns cannot be found.",
        "Use the instruct model, or put a `chat_template.jinja` beside its config.",
        "facts/template-without-an-assistant",
    ),
    "E0310": Explanation(
        "A verifier that writes the answers has a token that ends them.",
        "Without one each answer runs on to `data.responses.max_tokens`, and the draft learns that.",
        "Use the instruct model, or train on the data's own answers with `from: data`.",
        "facts/answers-without-an-end",
    ),
    "E0311": Explanation(
        "Under `--locked` the lock pins the commits of the verifier's `model` and `revision` and of data sets.",
        "A branch may have moved since, and whoever builds would get another model or other prompts.",
        "Run `specc lock SPEC`, and commit the lock.",
        "facts/unpinned-revision",
    ),
    "E0312": Explanation(
        "A draft that is a part of its verifier needs one that has that part.",
        "There would be nothing to fine-tune, and no server that looks for it.",
        "Choose another algorithm, or a verifier with a native MTP head.",
        "facts/head-of-a-verifier-without-one",
    ),
    "E0313": Explanation(
        "`draft.mask_token` is one of the verifier's tokens.",
        "Its embedding stands for a token that is still to be drafted.",
        "Give the id of a token, or remove the line.",
        "facts/mask-beyond-the-vocabulary",
    ),
    "E0314": Explanation(
        "Where the verifier has no token that ends an answer, `draft.mask_token` is given.",
        "It is derived from that token otherwise.",
        "Add `mask_token` to `draft`, the id of a token that no text has.",
        "facts/no-token-for-a-mask",
    ),
    "E0315": Explanation(
        "Parts of a draft have sizes that its verifier allows.",
        "A convolution's groups make up the hidden size, and there are no more candidates than tokens.",
        "Take the size that the hint says.",
        "facts/group-beside-the-hidden-size",
    ),
    "E0316": Explanation(
        "A draft that starts from a converted one is like it: its layers, its norms, the states it reads.",
        "The weights would mean something else, or would not fit.",
        "Make the spec's `draft` the same as the source's, or convert another draft.",
        "facts/init-with-other-norms",
    ),
    "E0317": Explanation(
        "A draft that is to be converted is in a layout that specc knows, and for this verifier.",
        "Every tensor has a place in the format, or a reason to be left out.",
        "Do as the hint says; `specc convert` tries the same by itself.",
        "facts/init-of-no-layout",
    ),
    "E0318": Explanation(
        "A source has images only where the verifier takes them.",
        "A verifier for text would be asked about a picture that it is never shown.",
        "Remove `images`, or use a verifier that takes them: `docs/how-to/images.md` lists the families.",
        "facts/images-of-a-verifier-without-eyes",
    ),
    "E0330": Explanation(
        "A verifier's attention heads divide by the processes that it is spread over.",
        "Each process computes as many heads of a layer as every other.",
        "Give `runtime.datagen.tensor_parallel` a number that divides the heads.",
        "facts/heads-that-do-not-divide",
    ),
    "E0331": Explanation(
        "vLLM has kernels for the verifier's quantised weights on the class of machine that the build is for.",
        "Its CPU build lacks some everywhere, and some where a processor has no AVX-512 or no AMX; it says so only when"
        " it has started.",
        "Name the model that the verifier was made from, or build on a GPU.",
        "facts/quantised-for-no-cpu",
    ),
    "E0332": Explanation(
        "On a CPU the weights that share a scale are neighbours.",
        "vLLM's CPU kernel does not read which weights are of which group, so that it would compute another model.",
        "Quantise the verifier without activation order (`desc_act`, `actorder`), or build on a GPU.",
        "facts/quantised-out-of-order",
    ),
    "E0333": Explanation(
        "An MTP head is put back into a verifier that is not quantised.",
        "The trained head takes the places of the old one's tensors, byte by byte, and the evaluation runs it in fp32.",
        "Name the model that the verifier was made from, or choose another algorithm.",
        "facts/head-of-a-quantised-verifier",
    ),
    "E0334": Explanation(
        "On a CPU a verifier with linear attention is computed in bf16.",
        "vLLM's CPU build has its kernels in no other dtype, and says so only when it has started.",
        "Use `dtype: bfloat16` and `lossless_prompts: 0`, whose comparison is in fp32, or build on a GPU.",
        "facts/linear-attention-in-fp32",
    ),
    "E0335": Explanation(
        "What vLLM's class of a verifier imports is installed.",
        "Its class of Qwen3.5 imports torchvision, also where no image is asked about, and on a CPU nothing brings it.",
        "Install a torchvision that was built for this torch, or build on a GPU.",
        "facts/class-without-torchvision",
    ),
    # E04: the matrix
    "E0401": Explanation(
        "A matrix has at most 10000 combinations.",
        "Each of them is a build.",
        "Give fewer values, or several specs.",
        "matrix-too-large",
    ),
    "E0402": Explanation(
        "No field of a matrix is inside another one of it.",
        "The value of the one would replace that of the other, in an order that nobody sees.",
        "Give values of one of them.",
        "matrix-nested",
    ),
    "E0403": Explanation(
        "A matrix builds each combination once.",
        "Two builds of one name would be one.",
        "Give each value once.",
        "matrix-twice",
    ),
    "E0404": Explanation(
        "`exclude` takes away combinations that the matrix has, and leaves one.",
        "An entry that fits nothing is a misspelt value most likely.",
        "Give values that the matrix has, or remove the entry.",
        "matrix-excludes-nothing",
    ),
    # E05: what the spec's files hold, as far as their first lines tell
    "E0501": Explanation(
        "A file of data has rows.",
        "Nothing can be learned from an empty one, or measured with it.",
        "Name a file of JSON Lines, one conversation a line.",
        "empty-data",
    ),
    "E0502": Explanation(
        "A file of data is JSON Lines in UTF-8: one JSON object a line.",
        "Rows are read one by one, so that a file may be larger than the memory; CSV, Parquet and a JSON array are not"
        " read that way.",
        "Convert it: `jq -c '.[]' data.json > data.jsonl` does it for an array.",
        "data-is-an-array",
    ),
    "E0503": Explanation(
        "A row is a conversation in one of the known shapes.",
        "A row without a question would be trained on as if it were nothing.",
        'Write `{"messages": [{"role": "user", "content": "…"}]}`; `conversations`, `prompt`, `instruction`, `query`,'
        " `question` and `text` are known too, and `input_ids` with a mask.",
        "data-of-no-shape",
    ),
    "E0504": Explanation(
        "A row of `evaluate.prompts` has `messages`, a text as `prompt`, or a list of texts as `turns`.",
        "The evaluation comes last, and would refuse another shape when everything else is built.",
        'Write `{"messages": [{"role": "user", "content": "…"}]}` or `{"prompt": "…"}`.',
        "prompts-of-another-shape",
    ),
    "E0505": Explanation(
        "With `from: data` the data has answers.",
        "A draft is trained on what the assistant said, and rows without it are left out.",
        "Write `from: verifier` to have the answers written, or name data that has them.",
        "data-without-answers",
    ),
    "E0506": Explanation(
        "The speculator in `draft.init` is one of the same algorithm.",
        "Its weights have other names and shapes otherwise.",
        "Start from another speculator, or from random weights.",
        "init-of-another-algorithm",
    ),
}

EXPLANATIONS: Final[Mapping[str, str]] = {identity: entry.sentence for identity, entry in ALL.items()}
"""What must hold, in one sentence, by the id of the error where it does not."""


def pages() -> dict[str, Page]:
    """Return every error's page by its id, in the order of the ids.

    Raises `SpeccError` if the examples are not where specc was installed.
    """
    return {identity: page(identity) for identity in ALL}


def page(identity: str) -> Page:
    """Return the page of one error; raises `KeyError` for an unknown id, and `SpeccError` as `pages` does."""
    entry = ALL[identity]
    path = examples() / f"{entry.example}.yaml"
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
        said = path.with_suffix(".txt").read_text(encoding="utf-8")
    except OSError as error:
        raise SpeccError(f"the example of {identity} is not where specc was installed", where=path.name,
                         hint="install specc again") from error  # fmt: skip
    here = PurePosixPath(SHOWN, entry.example).parent
    message = said.replace(f"{here}/", "")
    return Page(identity, entry.sentence, entry.why, entry.instead, path.name, text, message)


SHOWN: Final = "tests/specs/bad"
"""Where the examples stand in a checkout, and what their messages call that."""


def examples() -> Path:
    """Return the folder of the bad specs: inside the package in a wheel, with the tests in a checkout."""
    return shipped(__file__, "examples", SHOWN)
