"""Mutation test of the CUDA kernels on the host: does some test notice each small defect?"""
