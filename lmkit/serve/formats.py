"""response_format: the form that a text must have."""

from lmkit.serve.errors import bad
from lmkit.serve.fields import Fields
from lmkit.serve.grammar import Constraint
from lmkit.serve.served import Served

_KINDS = ("text", "json_object", "json_schema", "regex")


def constraint_of(fields: Fields, served: Served) -> Constraint | None:
    """Takes `response_format`. Raises Refused for a form that there is none of, or that cannot be kept to."""
    asked = fields.inner("response_format")
    if asked is None:
        return None
    kind, grammars = asked.choice("type", _KINDS, ""), served.grammars
    assert grammars is not None
    found = None
    if kind == "json_object":
        found = grammars.json({"type": "object"}, "response_format")
    elif kind == "json_schema":
        inner = asked.inner("json_schema")
        if inner is None:
            raise bad("response_format.json_schema", "response_format.json_schema: give {name, schema}")
        for name in ("name", "description"):
            inner.text(name)
        inner.flag("strict")  # a schema is always kept to
        schema = inner.take("schema", dict)
        if schema is None:
            raise bad("response_format.json_schema.schema", "response_format.json_schema.schema: give a JSON schema")
        inner.done()
        found = grammars.json(schema, "response_format.json_schema.schema")
    elif kind == "regex":
        pattern = asked.text("regex")
        if not pattern:
            raise bad("response_format.regex", "response_format.regex: give a regular expression")
        found = grammars.regex(pattern, "response_format.regex")
    asked.done()
    return found
