"""Weight files as tables and mapped bytes: safetensors and GGUF, checked before they are used."""
