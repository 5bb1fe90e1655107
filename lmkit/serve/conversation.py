"""From the messages of a chat to the ids of a prompt, as the model was trained; and tool calls back from its text."""

import hashlib
import json
import re
from typing import Any, NamedTuple, Protocol

import jinja2
import jinja2.meta

from lmkit.config.base import ConfigError
from lmkit.data.tokens.chat import ASSISTANT, ChatTemplate
from lmkit.serve.errors import bad
from lmkit.serve.fields import Fields, shown
from lmkit.serve.grammar import CALL, CALL_END
from lmkit.weights import Codec

Message = dict[str, Any]
_ROLES = ("system", "developer", "user", "assistant", "tool")
_CALLS = re.compile(rf"\s*{CALL}\s*(.*?)\s*{CALL_END}", re.DOTALL)
MOST_TOOLS = 128


class Conversation(Protocol):
    """How a model was taught to talk.

    Attributes:
        why_no_tools: why it takes no tools; "" where it does.
    """

    why_no_tools: str

    def encode(self, messages: list[Message], tools: list[Message]) -> list[int]:
        """The prompt, up to where the answer begins. Raises Refused for messages that it cannot write."""
        ...


class Template:
    """A chat template, with tools where it names them and spells their calls as <tool_call>{json}</tool_call>."""

    def __init__(self, template: ChatTemplate, codec: Codec):
        self._template, self._codec, self.source = template, codec, template.source
        parsed = jinja2.Environment(extensions=["jinja2.ext.loopcontrols"]).parse(
            re.sub(r"{%-?\s*(end)?generation\s*-?%}", "", template.source)
        )
        if "tools" not in jinja2.meta.find_undeclared_variables(parsed):
            self.why_no_tools = "the model's chat template has no place for tools"
        elif CALL not in template.source:
            self.why_no_tools = (
                f"the model's chat template does not spell tool calls as {CALL}{{json}}{CALL_END}, which is the one "
                f"spelling that is understood"
            )
        else:
            self.why_no_tools = ""

    def encode(self, messages: list[Message], tools: list[Message]) -> list[int]:
        more = {"tools": tools} if tools else {}
        try:
            text = self._template.render(messages, "messages", True, **more)
        except ConfigError as error:
            why = str(error).removeprefix("data: messages: tokenizer.chat_template: ")
            raise bad(
                "messages", f"messages: the model's chat template refuses them: {' '.join(why.split())}"
            ) from error
        return self._codec.bare(text)


class Plain:
    """data.message_format of a run that was trained on conversations without a template: as its rows were."""

    why_no_tools = "the model was trained without a chat template (data.message_format), so it knows no tools"

    def __init__(self, format: str, codec: Codec):
        self._before, self._after = format.split("{content}", 1)
        self._codec = codec

    def encode(self, messages: list[Message], tools: list[Message]) -> list[int]:
        end, ids = self._codec.end_ids[0], []
        for one in messages:
            text = self._before.replace("{role}", one["role"]) + one["content"] + self._after
            ids += [end, *self._codec.bare(text)]
        return [*ids, end, *self._codec.bare(self._before.replace("{role}", ASSISTANT))]


def messages_of(fields: Fields) -> list[Message]:
    """The messages, as templates take them: texts in one piece, arguments of calls as objects."""
    value = fields.take("messages", list)
    if not value:
        raise bad("messages", "messages: give at least one {role, content}")
    return [_message(one, number) for number, one in enumerate(value)]


def _message(value: Any, number: int) -> Message:
    place = f"messages[{number}]"
    if not isinstance(value, dict):
        raise bad("messages", f"{place}: {shown(value)} is not an object with role and content")
    fields = Fields(value, f"{place}.", "messages")
    role = fields.choice("role", _ROLES, "")
    calls, content = fields.take("tool_calls", list), fields.take("content", str, list)
    found: Message = {"role": "system" if role == "developer" else role, "content": _text(content, place)}
    if content is None and not (calls and role == ASSISTANT):
        raise fields.bad("content", "a message needs a text")
    if calls is not None:
        if role != ASSISTANT:
            raise fields.bad("tool_calls", "only the assistant calls tools")
        found["tool_calls"] = [_call(one, f"{place}.tool_calls[{n}]") for n, one in enumerate(calls)]
    for name in ("name", "tool_call_id"):
        if (text := fields.take(name, str)) is not None:
            found[name] = text
    fields.refuse("refusal", "it is an answer's alone")
    fields.done()
    return found


def _text(content: Any, place: str) -> str:
    if not isinstance(content, list):
        return content or ""
    for part in content:
        if not (isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str)):
            kind = part.get("type") if isinstance(part, dict) else part
            raise bad("messages", f"{place}.content: a part of type {shown(kind)}; this model reads text alone")
    return "\n".join(part["text"] for part in content)


def _call(value: Any, place: str) -> Message:
    try:
        function = value["function"]
        name, arguments = function["name"], function["arguments"]
        found = json.loads(arguments) if isinstance(arguments, str) else arguments
        if not (isinstance(name, str) and isinstance(found, dict)):
            raise TypeError
    except (TypeError, KeyError, ValueError) as error:
        raise bad(
            "messages", f"{place}: a call is {{id, type, function: {{name, arguments (a JSON object)}}}}"
        ) from error
    return {"id": str(value.get("id", "")), "type": "function", "function": {"name": name, "arguments": found}}


class Tools(NamedTuple):
    """What may be called, and whether something must be."""

    tools: list[Message]  # as they came, for the template
    forced: list[Message]  # functions of which one must be called; [] where none must

    @property
    def on(self) -> bool:
        return bool(self.tools)


def tools_of(fields: Fields, conversation: Conversation) -> Tools:
    """tools and tool_choice. Raises Refused where the model's template has none."""
    value, choice = fields.take("tools", list) or [], fields.take("tool_choice", str, dict)
    fields.refuse("parallel_tool_calls", "a model calls as many as it likes", True)
    if not value and choice not in (None, "none", "auto"):
        raise bad("tool_choice", "tool_choice: there are no tools")
    if len(value) > MOST_TOOLS:
        raise bad("tools", f"tools: {len(value)} of them; at most {MOST_TOOLS}")
    functions = [_function(one, f"tools[{number}]") for number, one in enumerate(value)]
    names = {one["name"]: one for one in functions}
    if value and conversation.why_no_tools and choice != "none":
        raise bad("tools", f"tools: not supported: {conversation.why_no_tools}")
    if isinstance(choice, dict):
        function = choice.get("function")
        name = function.get("name") if isinstance(function, dict) else None
        if choice.get("type") != "function" or not isinstance(name, str) or name not in names:
            raise bad("tool_choice", f"tool_choice: {shown(choice)} names none of the tools")
        return Tools(value, [names[name]])
    if choice not in (None, "none", "auto", "required"):
        raise bad("tool_choice", f"tool_choice: {shown(choice)}: it must be none, auto, required or a function")
    if choice == "none":
        return Tools([], [])
    return Tools(value, functions if choice == "required" else [])


def _function(value: Any, place: str) -> Message:
    function = value.get("function") if isinstance(value, dict) and value.get("type") == "function" else None
    name = function.get("name") if isinstance(function, dict) else None
    if not isinstance(name, str) or not re.fullmatch(r"[\w.-]{1,64}", name):
        raise bad("tools", f"{place}: a tool is {{type: function, function: {{name, parameters}}}}")
    assert isinstance(function, dict)
    if not isinstance(function.get("parameters") or {}, dict) or not isinstance(function.get("description") or "", str):
        raise bad("tools", f"{place}: description is a text, and parameters an object, a JSON schema")
    return function


def split_calls(text: str, seed: int) -> tuple[str, list[Message]]:
    """What a model wrote as the text around its calls, and the calls. A call that is no JSON stays text."""
    calls: list[Message] = []

    def take(match: re.Match) -> str:
        try:
            found = json.loads(match[1])
            name, arguments = found["name"], found.get("arguments", {})
            if not isinstance(name, str) or not isinstance(arguments, dict):
                return match[0]
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            return match[0]
        digest = hashlib.sha256(f"{seed} {len(calls)} {match[1]}".encode()).hexdigest()
        function = {"name": name, "arguments": json.dumps(arguments, ensure_ascii=False)}
        calls.append({"id": f"call_{digest[:24]}", "type": "function", "function": function})
        return ""

    return _CALLS.sub(take, text), calls
