"""The small world and the small model: synthetic skills, invented biographies, a 1.7M-parameter Llama that knows them."""
