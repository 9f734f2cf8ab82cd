"""The demo pair: two small language models, their problems, their training and a reference evaluation."""
