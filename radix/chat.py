"""Prompts to token ids, for one model directory.

Owns the loading of tokenizer.json and its companions, and is used by both the router and the replica: block keys agree
only if their tokens agree, so there must never be a second way from messages to tokens.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from radix.chat_template import ChatTemplate, ChatTemplateError, Message
from radix.cut_points import CutPoints
from radix.pieces import TokenPieces

if TYPE_CHECKING:
    from tokenizers import Tokenizer

__all__ = ["TOKEN_FILES", "ChatTemplateError", "ChatTokenizer", "TokenizerError", "render_options", "token_files"]

TOKEN_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")

# Characters of text from which waking other threads costs less than it gains.
_WORTH_THREADS = 4096


class TokenizerError(ValueError):
    """The directory does not hold a usable tokenizer; the message names the file and what is wrong with it."""


def render_options(
    tools: Any,
    add_generation_prompt: bool | None,
    continue_final_message: bool | None,
    chat_template_kwargs: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """A chat request's fields as keywords of `render` and `encode_chat`; absent ones get their defaults. As in vLLM,
    `chat_template_kwargs` has the last word, even on the request's own fields."""
    return {
        "tools": tools,
        "add_generation_prompt": not continue_final_message if add_generation_prompt is None else add_generation_prompt,
        "continue_final_message": bool(continue_final_message),
        **(chat_template_kwargs or {}),
    }


class ChatTokenizer:
    """Renders chats and turns text into token ids, exactly as the engine of the same model does.

    Safe to share between threads once built: nothing but caches changes after construction.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        templates: Mapping[str, ChatTemplate],
        cuts: CutPoints,
        pieces: TokenPieces,
        eos_ids: frozenset[int],
        fingerprint: str,
    ) -> None:
        # Limits in tokenizer.json are left-overs of training; a prompt is never cut or padded silently.
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self._tokenizer = tokenizer
        self._templates = dict(templates)
        self._cuts = cuts
        self.pieces = pieces
        self.eos_ids = eos_ids
        self.fingerprint = fingerprint
        self.affixes = self._find_affixes()

    @cached_property
    def vocab_size(self) -> int:
        """The largest token id, and one. Not how many there are: some vocabularies have gaps."""
        return 1 + max(self._tokenizer.get_vocab(with_added_tokens=True).values(), default=-1)

    @classmethod
    def load(cls, directory: Path) -> ChatTokenizer:
        """Reads a Hugging Face model directory. Raises TokenizerError for a missing or broken file.

        A directory without a chat template loads; then only chats raise ChatTemplateError.
        """
        # Text mode never pays for this import.
        from tokenizers import Tokenizer

        description = _read_json(directory / "tokenizer.json", required=True)
        config = _read_json(directory / "tokenizer_config.json")
        special_tokens = _special_tokens({**_read_json(directory / "special_tokens_map.json"), **config})
        sources = _template_sources(directory, config)
        try:
            tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
        except Exception as error:  # the tokenizers library raises bare Exception
            raise TokenizerError(f"{directory / 'tokenizer.json'} is not a tokenizer: {error}") from None
        try:
            templates = {name: ChatTemplate(source, special_tokens) for name, source in sources.items()}
        except ChatTemplateError as error:
            raise TokenizerError(f"{directory}: {error}") from None
        return cls(
            tokenizer,
            templates,
            CutPoints(description, prefer=[*special_tokens.values(), *sources.values()]),
            TokenPieces(tokenizer, description),
            _eos_ids(tokenizer, directory, special_tokens),
            _fingerprint(directory),
        )

    def render(
        self,
        messages: Sequence[Message],
        /,
        *,
        tools: Sequence[Any] | None = None,
        documents: Sequence[Any] | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        **template_kwargs: Any,
    ) -> str:
        """The chat as prompt text. Raises ChatTemplateError where there is no template or the template refuses."""
        if not self._templates:
            raise ChatTemplateError("This model has no chat template; send a text prompt to /v1/completions instead.")
        return self._template_for(tools).render(
            messages,
            tools=tools,
            documents=documents,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=continue_final_message,
            **template_kwargs,
        )

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """Token ids of `text`. Raises UnicodeEncodeError for a lone surrogate, which has no UTF-8 form."""
        return self._encode_batch([text], add_special_tokens)[0]

    def encode_pieces(self, pieces: Sequence[str]) -> list[list[int]]:
        """Token ids of each piece, without special tokens. Lets other threads run meanwhile; uses several for much."""
        if sum(map(len, pieces)) < _WORTH_THREADS:
            return [self._encode_batch([piece], False)[0] for piece in pieces]
        return self._encode_batch(pieces, False)

    def encode_chat(
        self,
        messages: Sequence[Message],
        /,
        *,
        tools: Sequence[Any] | None = None,
        documents: Sequence[Any] | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        add_special_tokens: bool = False,
        **template_kwargs: Any,
    ) -> list[int]:
        """render + encode. Templates print their own BOS, therefore none is added unless asked for."""
        text = self.render(
            messages,
            tools=tools,
            documents=documents,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=continue_final_message,
            **template_kwargs,
        )
        return self.encode(text, add_special_tokens=add_special_tokens)

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        text: str = self._tokenizer.decode(list(ids), skip_special_tokens=skip_special_tokens)
        return text

    def cut_points(self, text: str, apart: int = 1) -> list[int]:
        """Rising offsets (in characters, without 0 and the end) at which `text` may be cut exactly: the tokens of the
        pieces, joined, are the tokens of the whole, special tokens not added. Some, not all: at least `apart` from each
        other, and always the same for the same text to the left."""
        return self._cuts.find(text, apart)

    def _template_for(self, tools: Sequence[Any] | None) -> ChatTemplate:
        if tools and "tool_use" in self._templates:
            return self._templates["tool_use"]
        template = self._templates.get("default")
        if template is None:
            raise ChatTemplateError("The model names several chat templates, but none is called `default`.")
        return template

    def _encode_batch(self, texts: Sequence[str], add_special_tokens: bool) -> list[list[int]]:
        # The batch call releases the interpreter lock, the single one does not; "fast" leaves out the offsets.
        try:
            encodings = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=add_special_tokens)
        except TypeError:
            for text in texts:
                text.encode()  # says better what is wrong
            raise
        return [encoding.ids for encoding in encodings]

    def _find_affixes(self) -> tuple[list[int], list[int]]:
        """What `add_special_tokens` puts before and after a text: typically ([bos], [])."""
        bare = self.encode("a", add_special_tokens=False)
        full = self.encode("a", add_special_tokens=True)
        for start in range(len(full) - len(bare) + 1):
            if full[start : start + len(bare)] == bare:
                return full[:start], full[start + len(bare) :]
        raise TokenizerError("tokenizer.json: adding special tokens changes the text's own tokens; cannot use that.")


def token_files(directory: Path) -> dict[str, bytes]:
    """Those of the files that decide tokens which are there, by name: all that another machine needs to agree."""
    return {name: (directory / name).read_bytes() for name in TOKEN_FILES if (directory / name).is_file()}


def _read_json(path: Path, required: bool = False) -> dict[str, Any]:
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError:
        if required:
            raise TokenizerError(f"{path} is missing; point to a directory that holds a tokenizer.json.") from None
        return {}
    except (OSError, ValueError) as error:
        raise TokenizerError(f"{path} cannot be read as JSON: {error}") from None
    if not isinstance(value, dict):
        raise TokenizerError(f"{path} must hold a JSON object.")
    return value


def _template_sources(directory: Path, config: Mapping[str, Any]) -> dict[str, str]:
    """Templates by name. A chat_template.jinja beside the tokenizer takes precedence over the configuration."""
    try:
        return {"default": (directory / "chat_template.jinja").read_text(encoding="utf-8")}
    except FileNotFoundError:
        pass
    except (OSError, UnicodeDecodeError) as error:
        raise TokenizerError(f"{directory / 'chat_template.jinja'} cannot be read: {error}") from None
    template = config.get("chat_template")
    if template is None:
        return {}
    if isinstance(template, str):
        return {"default": template}
    try:
        return {str(named["name"]): str(named["template"]) for named in template}
    except (TypeError, KeyError):
        raise TokenizerError(
            f"{directory / 'tokenizer_config.json'}: `chat_template` must be a string or a list of named templates."
        ) from None


def _special_tokens(config: Mapping[str, Any]) -> dict[str, str]:
    """bos_token, eos_token and their kind, each given as text or as an AddedToken object."""
    tokens = {}
    for name, value in config.items():
        content = value.get("content") if isinstance(value, dict) else value
        if name.endswith("_token") and isinstance(content, str):
            tokens[name] = content
    return tokens


def _eos_ids(tokenizer: Tokenizer, directory: Path, special_tokens: Mapping[str, str]) -> frozenset[int]:
    """Where generation ends: what generation_config.json lists, and the tokenizer's own eos_token."""
    listed = _read_json(directory / "generation_config.json").get("eos_token_id")
    ids = {item for item in (listed if isinstance(listed, list) else [listed]) if isinstance(item, int)}
    own = tokenizer.token_to_id(special_tokens["eos_token"]) if "eos_token" in special_tokens else None
    return frozenset(ids if own is None else ids | {own})


def _fingerprint(directory: Path) -> str:
    """A content hash of the files that decide tokens: equal fingerprints give equal block keys."""
    digest = hashlib.sha256()
    files = token_files(directory)
    for name in TOKEN_FILES:
        content = files.get(name, b"")
        digest.update(f"{name}:{len(content)}:".encode())
        digest.update(content)
    return digest.hexdigest()[:32]
