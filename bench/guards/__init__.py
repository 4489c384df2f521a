"""How far do pictures shift by quantization alone?"""
