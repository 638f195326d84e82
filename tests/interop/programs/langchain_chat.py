"""What a program does with LangChain's ChatOpenAI: prints one JSON object of what it saw."""

import asyncio
import json
import sys

from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_openai import ChatOpenAI, OpenAIEmbeddings

saw = {}
chat = ChatOpenAI(model="local")
answer = chat.invoke([SystemMessage("be kind"), HumanMessage("hello")])
saw["whole"] = [answer.content, answer.usage_metadata["total_tokens"]]
saw["streamed"] = "".join(chunk.content for chunk in chat.stream("hello"))


async def later():
    return (await chat.ainvoke("hello")).content, "".join([chunk.content async for chunk in chat.astream("hello")])


saw["async"] = asyncio.run(later())


def pressure(pump: str) -> str:
    """The pressure of a pump."""
    return "6 bar"


tools = ChatOpenAI(model="cloud-tools").bind_tools([pressure])
called = tools.invoke("hello")
saw["called"] = [called.tool_calls[0]["name"], called.tool_calls[0]["args"]]
call = called.tool_calls[0]
told = ToolMessage("6 bar", tool_call_id=call["id"])
turns = [HumanMessage("hello"), AIMessage("", tool_calls=called.tool_calls), told]
saw["after_tool"] = ChatOpenAI(model="cloud-model").invoke(turns).content
saw["responses_api"] = ChatOpenAI(model="local", use_responses_api=True).invoke("hello").text
embeddings = OpenAIEmbeddings(model="local", check_embedding_ctx_length=False)
saw["vectors"] = [len(vector) for vector in embeddings.embed_documents(["one", "two"])]
json.dump(saw, sys.stdout)
