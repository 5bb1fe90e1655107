"""The verb `serve`: a model behind the HTTP API of OpenAI."""
