"""What a merged model is handed on with: its card, a Modelfile for Ollama, a GGUF file, an upload to the Hub.

card        README.md of a merged model, in the Hub's format; merging writes it, a run completes it with its results
ollama      a Modelfile, and the command that reads it
gguf        one GGUF file, by llama.cpp's converter, read back before it counts
push        the model's files on the Hub, after a look at what goes there
"""
